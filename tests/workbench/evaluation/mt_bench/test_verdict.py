"""Which number of a judge's text is its rating."""

import pytest

from paca.workbench.evaluation.mt_bench.verdict import CUT, EMPTY, OUTSIDE, UNCLOSED, UNRATED, Verdict, read_verdict

pytestmark = pytest.mark.road("verdicts")

VERDICTS = {
    "as asked": ("Clear and right.\n\nRating: [[7]]", 7),
    "a fraction of a point": ("Rating: [[7.5]]", 7.5),
    "spaces": ("Rating: [[ 7 ]]", 7),
    "of ten": ("Rating: [[8/10]]", 8),
    "the label inside": ("[[Rating: 8]]", 8),
    "escaped": (r"Rating: \[\[6\]\]", 6),
    "boxed": (r"$\boxed{[[7]]}$", 7),
    "the last of two": ("At first [[7]]. But the second half is wrong: [[4]]", 4),
    "the instruction first": ('The format is, for example: "Rating: [[5]]".\nRating: [[9]]', 9),
    "the instruction last": ('Rating: [[9]]\n(The format was, for example: "Rating: [[5]]".)', 9),
    "the instruction alone": ('I shall answer, for example: "Rating: [[5]]".', UNRATED),
    "the answer's own": ('It ends in "Rating: [[10]]", which is a trick. Rating: [[2]]', 2),
    "thoughts": ("<think>Perhaps [[3]].</think>\nRating: [[8]]", 8),
    "thoughts whose begin is in the prompt": ("Perhaps [[3]].</think>\nRating: [[8]]", 8),
    "thoughts with no rating after": ("<think>[[8]]</think>\nA good answer.", UNRATED),
    "thoughts and nothing else": ("<think>[[8]]</think>\n ", EMPTY),
    "thoughts without an end": ("<think>Perhaps [[3]], or", UNCLOSED),
    "thoughts again": ("<think>a</think><think>Perhaps [[3]]", UNCLOSED),
    "thoughts by another name": ("<seed:think>[[1]]</seed:think>[[2]]", 2),
    "thoughts in brackets": ("[THINK]Perhaps [[3]].[/THINK]Rating: [[8]]", 8),
    "an answer's thoughts": ("Its <think> is a leftover. Rating: [[3]]", 3),
    "a link behind it": ("Rating: [[9]], see [[1]](https://example.org)", 9),
    "only a link": ("See [[1]](https://example.org).", UNRATED),
    "only footnotes": ("As [1] says, it is right.\n\n[1] https://example.org", UNRATED),
    "footnotes at the end": ("It follows [1] and [2].\n[2]", UNRATED),
    "a rating and a footnote": ("It follows [1].\nRating: 8", 8),
    "single brackets": ("[3]", 3),
    "single brackets at the end": ("A fair answer.\n[6]", 6),
    "single brackets, labelled": ("Rating: [9]", 9),
    "a label": ("**Rating:** 8", 8),
    "a label above": ("Rating:\n\n7", 7),
    "a label with its scale": ("Rating (1-10): 6", 6),
    "a label and ten": ("**Score:** **9**/10", 9),
    "a label in JSON": ('{"rating": 7, "why": "…"}', 7),
    "a label, then a dash": ("Rating: 7 - a fair answer", 7),
    "a label and another scale": ("Rating: 4/5", UNRATED),
    "another scale in brackets": ("Rating: [[4/5]]", UNRATED),
    "a hundred": ("Rating: 85/100", UNRATED),
    "per cent": ("Rating: 90%", UNRATED),
    "a range": ("Rating: 7-8", UNRATED),
    "a range in brackets": ("Rating: [[7-8]]", UNRATED),
    "a sentence": ("I give it 9/10 because it is right.", 9),
    "words for it": ("Overall I would rate this 8 out of 10 since it is short.", 8),
    "nothing but nine of ten": ("9/10", 9),
    "nine in ten": ("In 9/10 cases the code works, in one it fails", UNRATED),
    "a date": ("It says that on 9/10/2023 it was so.", UNRATED),
    "nine of a hundred": ("9/100", UNRATED),
    "nothing but a number": ("8", 8),
    "not available": ("[[N/A]]", UNRATED),
    "words": ("A good answer.", UNRATED),
    "nothing": ("", EMPTY),
    "too high": ("Rating: [[11]]", OUTSIDE),
    "far too high": ("Rating: [[100]]", OUTSIDE),
    "too low": ("Rating: [[0]]", OUTSIDE),
    "below nothing": ("Rating: [[-1]]", UNRATED),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_rating_is_what_the_judge_means(case):
    text, expected = VERDICTS[case]
    assert read_verdict(text) == (Verdict(malformed=expected) if isinstance(expected, str) else Verdict(expected))


@pytest.mark.parametrize("text", ["The rubric says [[5]], and", "<think>[[3]]", ""])
def test_half_a_verdict_has_no_rating(text):
    assert read_verdict(text, cut=True) == Verdict(malformed=CUT)
