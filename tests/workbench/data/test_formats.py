"""Every format, told by its fields and turned into the rows that are encoded."""

import json

import pytest
from tests.paths import SHARED
from tests.workbench.tiny import write_jsonl

from paca import PacaError
from paca.workbench.data.documents import Place, read_sources
from paca.workbench.data.formats import FORMATS, convert_rows, recognised
from paca.workbench.data.oasst import best_path, gather_trees

DATA = SHARED / "data"
EXCHANGE = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


def message(text, role="assistant", rank=None, replies=(), **marks):
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **marks}


TREE = {
    "message_tree_id": "t",
    "prompt": message("Q", "prompter", replies=[message("worse", rank=1), message("A", rank=0)]),
}
ROWS = {
    "oasst": (TREE, EXCHANGE),
    "prompt-completion": ({"prompt": "p", "completion": "c", "id": 1}, {"prompt": "p", "completion": "c"}),
    "alpaca": ({"instruction": "Q", "input": "", "output": "A"}, EXCHANGE),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, EXCHANGE),
    "messages": ({**EXCHANGE, "id": 1}, EXCHANGE),
    "mmlu": (
        {"question": " Q ", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": ""},
        {"prompt": "Q\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "completion": " B"},
    ),
    "mmlu-letters": (
        {"question": "Q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"},
        {"prompt": "Q\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "completion": " B"},
    ),
    "text": ({"text": "t", "id": 1}, {"text": "t"}),
}


def test_every_format_has_a_row_here():
    assert set(ROWS) | {"oasst-messages"} == set(FORMATS)


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_told_by_its_fields(name):
    row, expected = ROWS[name]
    assert recognised(row).name == name
    assert convert_rows([("here", row)]) == [expected]
    assert convert_rows([("here", row)], name) == [expected]


def test_the_input_of_alpaca_follows_the_instruction():
    row = {"instruction": " Add. ", "input": "1 2\n", "output": "3"}
    assert convert_rows([("here", row)])[0]["messages"][0]["content"] == "Add.\n\n1 2"
    assert convert_rows([("here", {**row, "input": None})])[0]["messages"][0]["content"] == "Add."


def test_a_named_format_wins_over_the_fields():
    row = {"text": "t", **EXCHANGE}
    assert convert_rows([("here", row)]) == [EXCHANGE]
    assert convert_rows([("here", row)], "text") == [{"text": "t"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            "turn 1 is from 'bot', expected one of human, user, gpt",
        ),
        ({"conversations": "hi"}, "'conversations' must be a list"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "the first message has the role 'assistant'"),
        ({"instruction": 3, "output": "x"}, "'instruction' must be a string, got int"),
        ({"prompt": [EXCHANGE], "completion": "x"}, "'prompt' must be a string, got list"),
        ({"question": "q", "choices": ["1"], "answer": 0}, "'choices' must be a list of 4 strings, got ['1']"),
        ({"question": "q", "choices": list("1234"), "answer": 4}, "'answer' must be one of A, B, C, D, or a number"),
        (
            {"message_tree_id": 1, "prompt": {"role": "user"}},
            "a message must have the 'role' 'prompter' or 'assistant'",
        ),
        ({"text": "\ud800"}, "'text' holds half of a surrogate pair at character 0"),
        ({"instructions": "x", "output": "y"}, "did you mean 'instruction'?; known: oasst (message_tree_id, prompt)"),
    ],
)
def test_bad_rows(row, expected):
    with pytest.raises(PacaError) as caught:
        convert_rows([("file:1", row)])
    assert str(caught.value).startswith("file:1: ")
    assert expected in str(caught.value)


def path_of(prompt):
    found = best_path({"prompt": prompt})
    return found and [turn["content"] for turn in found["messages"]]


def test_the_best_ranked_path_of_a_tree():
    answers = [message("no rank"), message("2nd", rank=1), message("1st", rank=0), message("tie", rank=0)]
    assert path_of(message("Q", "prompter", replies=answers)) == ["Q", "1st"]
    assert path_of(message("Q", "prompter", replies=answers[:1])) == ["Q", "no rank"]
    deleted = message("best", rank=-1, deleted=True)
    assert path_of(message("Q", "prompter", replies=[deleted, *answers])) == ["Q", "1st"]
    longer = message(
        "A", replies=[message("Q2", "prompter", replies=[message("A2", replies=[message("Q3", "prompter")])])]
    )
    assert path_of(message("Q", "prompter", replies=[longer])) == ["Q", "A", "Q2", "A2"]
    assert path_of(message("Q", "prompter")) is None
    assert path_of(message("Q", "prompter", replies=answers, synthetic=True)) is None


@pytest.fixture
def trees():
    path = DATA / "oasst" / "en_100_tree.jsonl"
    if not path.exists():
        pytest.skip("the shared data folder is not there")
    return path


def test_real_trees_become_the_conversations_that_were_made_from_them(trees):
    (read,) = read_sources([str(trees)], Place())
    made = [json.loads(line) for line in trees.with_name("chat.jsonl").read_text("utf-8").split("\n") if line]
    assert len(made) == 95
    # Made with white space stripped.
    stripped = [[{**turn, "content": turn["content"].strip()} for turn in row["messages"]] for row in read.rows]
    assert stripped == [row["messages"] for row in made]


def test_messages_listed_one_by_one_are_put_into_the_same_trees(trees, tmp_path):
    rows = [json.loads(line) for line in trees.read_text("utf-8").split("\n") if line]
    flat = []

    def list_messages(node, parent):
        flat.append({key: value for key, value in node.items() if key != "replies"} | {"parent_id": parent})
        for reply in node["replies"]:
            list_messages(reply, node["message_id"])

    for row in rows:
        list_messages(row["prompt"], None)
    path = write_jsonl(tmp_path / "flat.jsonl", flat)
    assert recognised(flat[0]).name == "oasst-messages"
    (listed,), (nested,) = read_sources([str(path)], Place()), read_sources([str(trees)], Place())
    assert listed.rows == nested.rows
    assert len(gather_trees([("file", row) for row in flat])) == 100


def test_real_mmlu(tmp_path):
    if not (DATA / "mmlu").is_dir():
        pytest.skip("the shared data folder is not there")
    (dev,) = read_sources(["dev"], Place(folder=str(DATA / "mmlu")))
    (released,) = read_sources([str(DATA / "mmlu" / "released_test_dev.parquet")], Place())
    assert len(dev.rows) == 57 * 5
    assert len(released.rows) == 14042 + 285
    assert dev.rows[0]["prompt"].startswith(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nFind all c in Z_3"
    )
    assert {row["completion"] for row in dev.rows} == {" A", " B", " C", " D"}
