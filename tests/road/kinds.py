"""The kinds of things that go wrong between somebody's data and their server; each has tests of its own.

A test belongs to a kind by its marker, `@pytest.mark.road("fields")`, or a whole file by
`pytestmark = pytest.mark.road("fields")`. A new kind is a new line here.
"""

KINDS = {
    "fields": "every field that carries meaning is used, reported or refused",
    "templates": "what a chat template drops, refuses or can't read is told with its row",
    "sources": "a source is read as what it is, whatever its file's name, or refused",
    "lengths": "rows that lose all they teach are counted, held-out ones too",
    "pictures": "pictures of any depth are scaled or refused, never clipped",
    "resume": "a run goes on only over the data, classes and tokenizer that it began with",
    "locks": "two runs never write one folder",
    "verdicts": "a judge's rating is the one that it gave last",
    "refused-calls": "one refused call is one question's failure",
    "comparisons": "a report says what was measured, and crowns nobody within the noise",
    "select-command": "paca select ends with a command that trains well",
    "plans": "every architecture is planned, or one line says why not",
    "expert-exports": "what can't be exported is known before it is trained",
    "uncalled-layers": "layers whose forward is never called are told, not counted",
    "terminals": "any encoding, closed pipe or interrupt ends in one line, never a traceback",
    "problem-list": "all problems of a recipe are told at once, with near names",
}
