"""Fields that carry meaning, in every format of conversations."""

import json

import pytest
from tests.paths import SHARED
from tests.workbench.data.templates import converted, learned_text, tokenizer_of
from tests.workbench.tiny import make_tokenizer

from paca import PacaError
from paca.workbench.data.conversations import encode_conversation
from paca.workbench.data.documents import Place, read_sources
from paca.workbench.data.formats import FORMATS, convert_rows
from paca.workbench.data.rendering import training_template

pytestmark = pytest.mark.road("fields")

TURNS = {
    "alpaca": {"instruction": "Q", "output": "A"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "messages": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
}
LATER = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
TOOL = {"type": "function", "function": {"name": "rate_of", "description": "Rates", "parameters": {}}}
CASES = SHARED / "cases" / "road"


def marked(name, mark, value):
    """Two answers in a format, the first of them marked."""
    user, assistant, says, text = (
        ("human", "gpt", "from", "value") if name == "sharegpt" else ("user", "assistant", "role", "content")
    )
    turns = [{says: user, text: "2+2?"}, {says: assistant, text: "five", mark: value}]
    turns += [{says: user, text: "Check."}, {says: assistant, text: "four"}]
    return {"conversations" if name == "sharegpt" else "messages": turns}


@pytest.mark.parametrize("name", TURNS)
def test_system_comes_first(name):
    row, remarks = converted({**TURNS[name], "system": "Be brief."})
    assert row == {"messages": [{"role": "system", "content": "Be brief."}, *LATER]}
    assert remarks.lines() == []
    assert converted({**TURNS[name], "system": ""})[0] == {"messages": LATER}


@pytest.mark.parametrize("name", TURNS)
def test_history_comes_before_and_carries_loss(name):
    row, _ = converted({**TURNS[name], "system": "S", "history": [["Q0", "A0"], ["Q1", "A1"]]})
    assert [turn["content"] for turn in row["messages"]] == ["S", "Q0", "A0", "Q1", "A1", "Q", "A"]
    tokenizer = make_tokenizer()
    assert learned_text(tokenizer, encode_conversation(tokenizer, row, None)) == "A0<|im_end|>A1<|im_end|>A<|im_end|>"


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("written", [lambda tools: tools, json.dumps])
def test_tools_are_given_to_the_template(name, written):
    row, _ = converted({**TURNS[name], "tools": written([TOOL])})
    assert row["tools"] == [TOOL]
    tokenizer = tokenizer_of("qwen3")
    encoded = encode_conversation(tokenizer, row, training_template(tokenizer))
    assert '<tools>\n{"type": "function", "function": {"name": "rate_of"' in tokenizer.decode(encoded["input_ids"])
    assert "rate_of" not in learned_text(tokenizer, encoded)


@pytest.mark.parametrize("name", TURNS)
def test_variables_of_the_template_are_given_to_it(name):
    tokenizer = make_tokenizer("{% if loud %}LOUD{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}")
    row, _ = converted({**TURNS[name], "chat_template_kwargs": {"loud": True}})
    assert tokenizer.decode(encode_conversation(tokenizer, row, None)["input_ids"]).startswith("LOUD")


@pytest.mark.parametrize("name", ["sharegpt", "messages"])
@pytest.mark.parametrize(("mark", "value"), [("weight", 0), ("weight", 0.0), ("train", False), ("masked", True)])
def test_a_turn_that_is_marked_carries_no_loss(name, mark, value):
    row, _ = converted(marked(name, mark, value))
    tokenizer = make_tokenizer()
    encoded = encode_conversation(tokenizer, row, None)
    assert learned_text(tokenizer, encoded) == "four<|im_end|>"
    assert "five" in tokenizer.decode(encoded["input_ids"])


@pytest.mark.parametrize("name", ["sharegpt", "messages"])
@pytest.mark.parametrize(
    ("mark", "value"), [("weight", 1), ("train", True), ("masked", False), ("weight", None), ("train", None)]
)
def test_a_turn_that_is_marked_to_be_learned_is(name, mark, value):
    row, _ = converted(marked(name, mark, value))
    assert learned_text(make_tokenizer(), encode_conversation(make_tokenizer(), row, None)).startswith("five")


@pytest.mark.parametrize(("mark", "value"), [("weight", 0.5), ("weight", 2), ("train", "false"), ("masked", [1])])
def test_a_mark_that_is_neither_is_refused(mark, value):
    with pytest.raises(PacaError, match=rf"file:1: message 2: '{mark}' must be true, false, 0 or 1, got .*; a turn"):
        converted(marked("messages", mark, value))


def test_loss_on_a_question_is_not_to_be_had_and_told():
    _, remarks = converted({"messages": [{"role": "user", "content": "Q", "train": True}, *LATER[1:]]})
    assert remarks.lines() == [
        "1 row: a turn of 'user' is marked to carry loss, which only the assistant's do; for instance file:1"
    ]


@pytest.mark.parametrize("name", [*TURNS, "text", "prompt-completion", "mmlu"])
@pytest.mark.parametrize("field", ["images", "image", "videos", "audios"])
def test_pictures_and_sound_are_told_with_their_rows(name, field):
    plain = {
        "text": {"text": "t"},
        "prompt-completion": {"prompt": "p", "completion": "c"},
        "mmlu": {"question": "q", "choices": list("1234"), "answer": 1},
    }
    row = {**TURNS, **plain}[name]
    assert FORMATS[name].problem(row) is None
    _, remarks = converted({**row, field: ["a.jpg"]})
    assert remarks.lines() == [f"1 row: {field!r} is not used: only text is trained on; for instance file:1"]
    assert converted({**row, field: []})[1].lines() == []


def test_contents_may_be_lists_of_parts():
    parts = [{"type": "text", "text": "What "}, {"type": "image_url", "image_url": {"url": "x"}}]
    row = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "is it?"}]}, LATER[1]]}
    made, remarks = converted(row)
    assert made["messages"][0]["content"] == "What is it?"
    assert remarks.lines() == ["1 row: 'image_url' is not used: only text is trained on; for instance file:1"]
    with pytest.raises(PacaError, match="'content' is a list whose entries must be like"):
        converted({"messages": [{"role": "user", "content": ["What"]}, LATER[1]]})


@pytest.mark.parametrize("field", ["system", "tools", "history"])
@pytest.mark.parametrize("row", [{"text": "t"}, {"prompt": "p", "completion": "c"}])
def test_formats_without_turns_tell_what_they_do_not_use(row, field):
    kind = next(iter(row)).replace("prompt", "prompt-completion")
    _, remarks = converted({**row, field: "x"})
    assert remarks.lines() == [f"1 row: {field!r} is not used by the format {kind!r}; for instance file:1"]


def test_an_unknown_column_is_named_once():
    _, remarks = converted({**TURNS["alpaca"], "id": 3, "source": "web", "empty": ""})
    _, others = converted({**TURNS["alpaca"], "id": 4})
    remarks.extend([others])
    assert remarks.unused_columns() == ["columns that are not used: 'id', 'source'"]
    assert remarks.lines() == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"system": 3}, "'system' must be a string, got int"),
        ({"history": [["Q"]]}, "'history' must be a list of [question, answer], got [['Q']]"),
        ({"history": [["Q", 3]]}, "'history' must be a list of"),
        (
            {"tools": "not JSON"},
            "'tools' must be a list of descriptions of functions, or the JSON of one, got 'not JSON'",
        ),
        ({"tools": ["rate_of"]}, "'tools' must be a list"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' must be an object, got [1]"),
    ],
)
@pytest.mark.parametrize("name", TURNS)
def test_context_that_can_not_be_read(name, row, expected):
    with pytest.raises(PacaError) as caught:
        converted({**TURNS[name], **row})
    assert str(caught.value).startswith(f"file:1: {expected}")


def test_two_system_messages_are_refused_unless_they_are_the_same():
    turns = [{"role": "system", "content": "S"}, *LATER]
    assert converted({"messages": turns, "system": "S"})[0]["messages"] == turns
    with pytest.raises(PacaError, match="has a 'system' beside its turns and another as the first of them; keep one"):
        converted({"messages": turns, "system": "other"})


def test_sharegpt_with_calls_and_what_they_gave():
    call = {"name": "rate_of", "arguments": {"a": "EUR"}}
    turns = [("human", "Rate?"), ("function_call", json.dumps(call)), ("observation", "11.2"), ("gpt", "It is 11.2.")]
    row, _ = converted({"conversations": [{"from": speaker, "value": text} for speaker, text in turns]})
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][1]["tool_calls"] == [{"type": "function", "function": call}]
    with pytest.raises(PacaError, match=r"turn 2: a tool call must name its function|turn 2: .* must be a list"):
        converted(
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "function_call", "value": "rate_of()"}]}
        )


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": {"name": "f", "arguments": {"a": 1}}},
        {"name": "f", "arguments": {"a": 1}},
        {"name": "f", "arguments": '{"a": 1}'},
    ],
)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_tool_calls_in_all_their_spellings(call, content):
    row, _ = converted({"messages": [LATER[0], {"role": "assistant", **content, "tool_calls": [call]}]})
    (made,) = row["messages"][1]["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (made["type"], made.get("id"), row["messages"][1]["content"]) == ("function", call.get("id"), "")


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("f()", "'tool_calls' must be a list of"),
        ([{"function": {"arguments": {}}}], "a tool call must name its function"),
        ([{"name": "f", "arguments": "a = 1"}], "the arguments of a tool call must be an object or the JSON of one"),
        ([{"name": "f", "arguments": [1]}], "the arguments of a tool call must be an object or the JSON of one"),
    ],
)
def test_tool_calls_that_can_not_be_read(calls, expected):
    with pytest.raises(PacaError, match=f"file:1: message 2: {expected}"):
        converted({"messages": [LATER[0], {"role": "assistant", "content": "", "tool_calls": calls}]})


def test_nulls_that_arrow_adds_are_no_fields(tmp_path):
    """A column of Arrow gives every turn the keys of all: `tool_calls: null`, and `{"a": 1, "b": null}`."""
    import pyarrow as pa
    from pyarrow import parquet

    calls = [[{"name": "f", "arguments": {"a": 1}}], [{"name": "g", "arguments": {"b": 2}}]]
    turns = [{"role": "assistant", "content": "A", "tool_calls": call, "weight": 1.0} for call in calls]
    rows = [{"messages": [LATER[0], turn]} for turn in turns]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (documents,) = read_sources([str(tmp_path / "a.parquet")], Place())
    assert documents.rows[0]["messages"] == convert_rows([("here", rows[0])])[0]["messages"]
    assert documents.rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"b": 2}


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
def test_fields_as_people_have_them():
    (alpaca,) = read_sources([str(CASES / "alpaca_system_history.jsonl")], Place())
    assert [turn["role"] for turn in alpaca.rows[0]["messages"]] == ["system", *["user", "assistant"] * 2]
    (trained,) = read_sources([str(CASES / "axolotl_train_false.jsonl")], Place())
    tokenizer = make_tokenizer()
    assert learned_text(tokenizer, encode_conversation(tokenizer, trained.rows[0], None)) == "four<|im_end|>"
    (pictures,) = read_sources([str(CASES / "mllm.jsonl")], Place())
    assert pictures.remarks.lines()[0].startswith("2 rows: 'images' is not used")
