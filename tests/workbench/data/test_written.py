"""What templates leave out is told, and only that: all that ship with TRL, over every shape of a conversation."""

import copy

import pytest
from tests.workbench.data.templates import (
    NAMES,
    THINKS,
    WANT_LISTS,
    converted,
    learned_text,
    tokenizer_of,
    unknown_to_trl,
)
from tests.workbench.tiny import make_tokenizer

from paca import PacaError
from paca.workbench.data.conversations import encode_conversation
from paca.workbench.data.remarks import Remarks
from paca.workbench.data.rendering import training_template

pytestmark = pytest.mark.road("templates")

CALL = {"type": "function", "function": {"name": "frobnicate", "arguments": {"amount": "plenty", "count": 3}}}
TOOLS = [{"type": "function", "function": {"name": "describedtool", "description": "d", "parameters": {}}}]
Q1, Q2 = ({"role": "user", "content": content} for content in ("First question", "Second question"))
GAVE = {"role": "tool", "name": "frobnicate", "content": "toolgave"}


def says(content, **fields):
    return {"role": "assistant", "content": content, **fields}


SHAPES = {
    "plain": [Q1, says("alpha"), Q2, says("beta")],
    "thoughts in the content": [
        Q1, says("<think>musing</think>\n\nalpha"), Q2, says("<think>\npondering\n</think>\n\nbeta"),
    ],
    "thoughts in a field": [
        Q1, says("alpha", reasoning_content="musing"), Q2, says("beta", reasoning_content="pondering"),
    ],
    "a call": [Q1, says("", tool_calls=[CALL]), GAVE, says("alpha")],
    "words beside a call": [Q1, says("alpha", tool_calls=[CALL]), GAVE, says("beta")],
}  # fmt: skip
REFUSALS = ("can't write turns of the roles", "would be lost", "does not keep turn", "does not go on from")
# A word of each part that is to be learned, and what is said of a part that isn't.
PARTS = {
    "musing": "the thoughts of an earlier answer",
    "pondering": "the thoughts of an answer",
    "frobnicate": "the 'tool_calls' of an answer",
    "plenty": "the arguments of tool calls",
    "alpha": "what an answer says beside its tool calls",
}


def encode(tokenizer, messages, tools=None):
    row, _ = converted(copy.deepcopy({"messages": messages, **({"tools": tools} if tools else {})}))
    remarks = Remarks()
    return encode_conversation(tokenizer, row, training_template(tokenizer), remarks), remarks


def refusal(tokenizer, messages):
    try:
        encode(tokenizer, messages)
    except PacaError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WANT_LISTS])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_does_not_carry_loss_is_told_and_nothing_else(name, shape):
    tokenizer, messages = tokenizer_of(name), SHAPES[shape]
    given = {word for word in PARTS if word in str(messages)} - (
        {"alpha"} if shape != "words beside a call" else set()
    )
    refused = refusal(tokenizer, messages)
    if refused:
        assert any(why in refused for why in REFUSALS)
        return
    encoded, remarks = encode(tokenizer, messages)
    learned, told = learned_text(tokenizer, encoded), " ".join(remarks.lines())
    for word in given:
        assert (word in learned) == (PARTS[word] not in told), word
    assert "beta" in learned or "alpha" in learned


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WANT_LISTS])
def test_a_turn_that_is_marked_carries_no_loss_under_any_template(name):
    tokenizer = tokenizer_of(name)
    for masked, learned in ((1, "beta"), (3, "alpha")):
        messages = copy.deepcopy(SHAPES["plain"])
        other = messages[masked]["content"]
        whole, _ = encode(tokenizer, messages)
        messages[masked]["train"] = False
        encoded, _ = encode(tokenizer, messages)
        assert encoded["input_ids"] == whole["input_ids"]
        assert learned in learned_text(tokenizer, encoded)
        assert other not in learned_text(tokenizer, encoded)
        assert other in tokenizer.decode(encoded["input_ids"])
        # What is learned with and without the other turn is the same, its EOS token included.
        assert learned_text(tokenizer, encoded) in learned_text(tokenizer, whole)


@pytest.mark.parametrize("name", sorted(THINKS))
def test_thoughts_that_are_written_are_learned(name):
    for shape in ("thoughts in the content", "thoughts in a field"):
        encoded, remarks = encode(tokenizer_of(name), SHAPES[shape])
        assert remarks.lines() == []
        assert all(word in learned_text(tokenizer_of(name), encoded) for word in ("musing", "pondering"))


@pytest.mark.parametrize("name", sorted(WANT_LISTS))
def test_templates_that_want_lists_for_contents_are_refused(name):
    with pytest.raises(PacaError, match=r"the answer in turn 2 would be lost|can't write turns of the roles"):
        encode(tokenizer_of(name), SHAPES["plain"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qwen3", ()),
        ("llama3", ("leaves out the 'tools'", "leaves out the 'tool_calls' of an answer")),
        ("phi3", ("leaves out the 'tools'", "leaves out a turn of 'tool'")),
        ("gptoss", ("leaves out what an answer says beside its tool calls",)),
    ],
)
def test_tools_and_what_they_gave(name, told):
    _, remarks = encode(tokenizer_of(name), SHAPES["words beside a call"], TOOLS)
    assert all(any(text in line for line in remarks.lines()) for text in told)
    if not told:
        assert remarks.lines() == []


def test_an_answer_of_calls_alone_is_refused_by_a_template_without_them():
    with pytest.raises(PacaError, match=r"the answer in turn 2 would be lost, as the chat template leaves out the "):
        encode(tokenizer_of("llama3"), SHAPES["a call"])


def test_a_second_call_that_is_left_out_is_a_part():
    other = {"type": "function", "function": {"name": "second", "arguments": {"a": 1}}}
    messages = [Q1, says("", tool_calls=[CALL, other]), GAVE, GAVE, says("alpha")]
    encoded, remarks = encode(tokenizer_of("gptoss"), messages)
    assert "second" not in learned_text(tokenizer_of("gptoss"), encoded)
    assert any("leaves out a part of the 'tool_calls' of an answer" in line for line in remarks.lines())


# As DeepSeek's own does: a mapping is a TypeError there.
JOINING = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + "
    "c.function.arguments }}{% endfor %}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("make", [lambda: tokenizer_of("deepseekv3"), lambda: make_tokenizer(JOINING)])
@pytest.mark.parametrize("arguments", [{"amount": "it's plenty"}, '{"amount": "it\'s plenty"}'])
def test_arguments_are_given_as_the_template_takes_them(make, arguments):
    tokenizer = make()
    call = {"type": "function", "function": {"name": "frobnicate", "arguments": arguments}}
    encoded, remarks = encode(tokenizer, [Q1, says("", tool_calls=[call]), GAVE, says("alpha")])
    assert '{"amount": "it\'s plenty"}' in learned_text(tokenizer, encoded)
    assert remarks.lines() == []


def test_an_answer_that_does_not_begin_as_its_prompt_ends():
    """DeepSeek asks for thoughts, `<think>`, which its template doesn't write into an answer."""
    with pytest.raises(PacaError, match=r"asks for an answer with '.*<think>.n', which turn 2 does not go on from"):
        encode(unknown_to_trl("deepseekv3"), SHAPES["plain"])


def test_a_role_that_the_template_leaves_out():
    tokenizer = make_tokenizer(
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}"
    )
    _, remarks = encode(tokenizer, [{"role": "developer", "content": "Be brief."}, *SHAPES["plain"]])
    assert remarks.lines() == ["1 row: the chat template leaves out a turn of 'developer'; for instance file:1"]


# Of each: a template, the conversation whose first two turns it writes, what is learned of them, and what is said.
WRITTEN = {
    "arguments, not in Python's spelling": (
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
        "<|im_end|>",
        "a call",
        'frobnicate{"amount": "plenty", "count": 3}<|im_end|>',
        [],
    ),
    "thoughts outside the markers, which carry no loss": (
        "{% if m.role == 'assistant' %}{{ m.reasoning_content }}{% generation %}{{ m.content + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}",
        "thoughts in a field",
        "alpha<|im_end|>",
        ["1 row: the chat template writes where nothing carries loss the thoughts of an answer; for instance file:1"],
    ),
    "a template that refuses the words that tracing puts in": (
        "{% if m.content not in ('First question', 'alpha') %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content + '<|im_end|>' }}",
        "plain",
        "alpha<|im_end|>",
        [],
    ),
}


@pytest.mark.parametrize(("template", "shape", "learned", "told"), WRITTEN.values(), ids=WRITTEN)
def test_what_is_learned_of_an_answer_as_a_template_writes_it(template, shape, learned, told):
    tokenizer = make_tokenizer(f"{{% for m in messages %}}{template}{{% endfor %}}")
    encoded, remarks = encode(tokenizer, SHAPES[shape][:2])
    assert learned_text(tokenizer, encoded) == learned
    assert remarks.lines() == told


def test_fields_of_turns_that_no_template_reads_are_named():
    messages = [{**Q1, "timestamp": 3, "name": "Ada"}, says("alpha", id="m1")]
    _, remarks = encode(make_tokenizer(), messages)
    assert remarks.unused_columns() == ["columns that are not used: 'messages.timestamp'"]
