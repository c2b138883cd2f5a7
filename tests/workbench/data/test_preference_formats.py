"""Each format of preference data as it is published, what a row becomes, and what is said of bad rows."""

import pytest
from tests.workbench.tiny import write_jsonl

from paca import PacaError
from paca.workbench.data.documents import Place, read_sources
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def message(role, text, rank=None, replies=(), **more):
    return {"role": role, "text": text, "rank": rank, "replies": list(replies), **more}


TURNS = {"prompt": [user("Q")], "chosen": [answer("good")], "rejected": [answer("bad")]}
SYSTEM = {"role": "system", "content": "S"}
TREE = {
    "message_tree_id": "1",
    "prompt": message(
        "prompter",
        "Q",
        replies=[
            message("assistant", "worst", 2),
            message("assistant", "best", 0, [message("prompter", "Q2", replies=[message("assistant", "only", 0)])]),
            message("assistant", "middle", 1),
            message("assistant", "deleted", 3, deleted=True),
            message("assistant", "unranked"),
        ],
    ),
}
ROWS = {
    "strings": ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, "pairs"),
    "turns": (TURNS, "pairs"),
    "turns without a prompt": (
        {"chosen": [user("Q"), answer("good")], "rejected": [user("Q"), answer("bad")]},
        "pairs",
    ),
    "strings without a prompt": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
        "pairs",
    ),
    "UltraFeedback, binarized": (
        {
            "prompt": "Q",
            "prompt_id": "1",
            "chosen": [user("Q"), answer("good")],
            "rejected": [user("Q"), answer("bad")],
            "messages": [user("Q"), answer("good")],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        "pairs",
    ),
    "turns with single messages": (
        {"prompt": [user("Q")], "chosen": answer("good"), "rejected": answer("bad")},
        "pairs",
    ),
    "turns and strings": ({"prompt": [user("Q")], "chosen": "good", "rejected": "bad"}, "pairs"),
    "UltraFeedback": (
        {
            "instruction": "Q",
            "completions": [
                {"response": "middle", "overall_score": 5.0},
                {"response": "bad", "overall_score": 1.0},
                {"response": "good", "overall_score": 7.5},
            ],
        },
        "ultrafeedback",
    ),
    "Orca": ({"system": "", "question": "Q", "chosen": "good", "rejected": "bad"}, "question-pairs"),
    "extra fields of turns": (
        {**TURNS, "chosen": [{**answer("good"), "tokens": 3}]},
        "pairs",
    ),
}


def read(tmp_path, *rows, kind=None):
    path = write_jsonl(tmp_path / "rows.jsonl", list(rows))
    return read_sources([str(path)], Place(format=kind, formats=PREFERENCE_FORMATS))[0].rows


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_prompt_with_two_answers(name, tmp_path):
    row, kind = ROWS[name]
    (read_row,) = read(tmp_path, row)
    if name == "strings":
        assert read_row == row
    elif name == "strings without a prompt":
        assert read_row == {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " good", "rejected": " bad"}
    else:
        assert read_row == TURNS
    assert read(tmp_path, row, kind=kind) == [read_row]


def test_a_system_message_comes_first(tmp_path):
    row = {"system": "S", "question": "Q", "chosen": "good", "rejected": "bad"}
    assert read(tmp_path, row) == [{**TURNS, "prompt": [SYSTEM, user("Q")]}]


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_single_answers_with_labels(label, tmp_path):
    row = {"prompt": "Q", "completion": "good", "label": label}
    assert read(tmp_path, row) == [{**row, "label": bool(label)}]
    turns = {"prompt": [user("Q")], "completion": [answer("good")], "label": label}
    assert read(tmp_path, turns) == [{**turns, "label": bool(label)}]


def test_of_a_tree_the_best_and_the_worst_ranked_replies(tmp_path):
    assert read(tmp_path, TREE) == [{"prompt": [user("Q")], "chosen": [answer("best")], "rejected": [answer("worst")]}]


def test_completions_that_are_equally_good_teach_nothing(tmp_path):
    alike = [{"response": text, "overall_score": 3} for text in ("a", "b")]
    rows = [{"instruction": "Q", "completions": alike}, ROWS["UltraFeedback"][0]]
    assert read(tmp_path, *rows) == [TURNS]


BAD = {
    "no rejected answer": (
        {"prompt": "Q", "chosen": "good"},
        "has no 'rejected', as rows of the format 'pairs' have; its keys: 'prompt', 'chosen'",
    ),
    "a null answer": ({"prompt": "Q", "chosen": "good", "rejected": None}, "'rejected' must be a string or a list of"),
    "an empty answer": ({"prompt": "Q", "chosen": " ", "rejected": "bad"}, "'chosen' is empty"),
    "equal answers": (
        {"prompt": "Q", "chosen": "same", "rejected": "same "},
        "'chosen' and 'rejected' are equal ('same'), so there is nothing to prefer",
    ),
    "equal turns": (
        {**TURNS, "rejected": [answer("good")]},
        "'chosen' and 'rejected' are equal",
    ),
    "answers of two kinds": ({**TURNS, "chosen": "good"}, "one is a string and the other a list of turns"),
    "a turn without a role": ({**TURNS, "chosen": [{"content": "good"}]}, "turn 1 of 'chosen' must hold strings"),
    "an answer of the user": ({**TURNS, "chosen": [user("good")]}, "'chosen' must be one turn of the assistant"),
    "two turns": ({**TURNS, "chosen": [answer("a"), user("b")]}, "got turns of assistant, user"),
    "other prompts": (
        {"chosen": [user("Q"), answer("good")], "rejected": [user("R"), answer("bad")]},
        "'chosen' and 'rejected' begin with different turns",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_said_of_a_bad_pair(name, tmp_path):
    row, said = BAD[name]
    with pytest.raises(PacaError) as caught:
        read(tmp_path, ROWS["strings"][0], row)
    assert "rows.jsonl:2: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "Q", "completion": "a", "label": "good"},
            "'label' must be true (the completion was liked) or false",
        ),
        ({"prompt": "Q", "completion": "", "label": True}, "'completion' is empty"),
        ({"prompt": "Q", "completion": "a"}, "are those of no known format; known: oasst ("),
        (
            {"instruction": "Q", "completions": [{"response": "a"}]},
            "a completion must have a number as 'overall_score'",
        ),
        ({"text": "plain"}, "are those of no known format"),
    ],
)
def test_what_is_said_of_other_bad_rows(row, said, tmp_path):
    with pytest.raises(PacaError) as caught:
        read(tmp_path, row)
    assert said in str(caught.value)
