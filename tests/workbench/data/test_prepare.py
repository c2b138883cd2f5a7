"""Splitting, cutting, and what reaches the trainer."""

import copy
import dataclasses

import pytest
from tests.workbench.tiny import write_jsonl, write_text

from paca import PacaError
from paca.workbench.data.prepare import hold_out, prepare_data, read_data, spread
from paca.workbench.recipe.recipe import DataSection

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def prepare(section, tokenizer, length=16):
    return prepare_data(read_data(section), section, tokenizer, length)


def test_hold_out_and_spread():
    assert hold_out(range(7), 3) == ([1, 2, 4, 5], [0, 3, 6])
    assert hold_out(range(3), None) == ([0, 1, 2], [])
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread(range(3), None) == [0, 1, 2]


def test_a_text_file_is_cut_into_blocks_of_which_one_in_so_many_is_held_out(tmp_path, tokenizer):
    path = write_text(tmp_path / "a.txt")
    ids = [*tokenizer(path.read_text())["input_ids"], tokenizer.eos_token_id]
    blocks = [ids[start : start + 16] for start in range(0, len(ids), 16)]
    data = prepare(DataSection(train=str(path), holdout_every=4), tokenizer)
    train, held_out = list(data.train["input_ids"]), list(data.held_out["input_ids"])
    assert held_out == blocks[::4]
    assert sorted(train + held_out) == sorted(blocks)
    assert list(data.train["labels"]) == train


def test_rows_are_held_out_whole(tmp_path, tokenizer):
    texts = [f"{number} " * 20 for number in range(6)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    data = prepare(DataSection(train=str(path), holdout_every=3), tokenizer)
    train, held_out = (
        "".join(tokenizer.decode(ids) for ids in part["input_ids"]) for part in (data.train, data.held_out)
    )
    end = tokenizer.eos_token
    assert held_out == texts[0] + end + texts[3] + end
    assert train == "".join(texts[index] + end for index in (1, 2, 4, 5))


def test_data_of_its_own_for_evaluation(tmp_path, tokenizer):
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "train"}])
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"text": "held out"}])
    data = prepare(DataSection(train=str(train), eval=str(held_out)), tokenizer)
    assert tokenizer.decode(data.train[0]["input_ids"]) == "train<|im_end|>"
    assert tokenizer.decode(data.held_out[0]["input_ids"]) == "held out<|im_end|>"


def test_eval_split_of_a_data_set(tmp_path, tokenizer):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", [{"text": split}])
    section = DataSection(train=str(folder), eval=str(folder), eval_split="validation")
    assert tokenizer.decode(prepare(section, tokenizer).held_out[0]["input_ids"]) == "validation<|im_end|>"


def test_eval_limit_keeps_the_total(tmp_path, tokenizer):
    data = prepare(DataSection(train=str(write_text(tmp_path / "a.txt")), holdout_every=4, eval_limit=3), tokenizer)
    assert len(data.held_out) == 3
    assert data.held_out_total > 10


def test_conversations_keep_their_bounds_and_are_cut_at_the_length(tmp_path, tokenizer):
    long_question = {"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]}
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, CHAT, long_question, CHAT])
    data = prepare(DataSection(train=str(path), holdout_every=3), tokenizer, length=64)
    assert len(data.held_out) == 2
    assert len(data.train) == 1  # nothing of the long question's answer is left within 64 tokens
    assert max(map(len, data.train["input_ids"])) <= 64


def test_rows_that_are_longer_may_be_left_out_in_place_of_being_cut(tmp_path, tokenizer):
    def chat(answer):
        return {"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": answer}]}

    rows = [chat(answer) for answer in ("cat " * 30, "cat", "cat " * 40, "dog", "fox", "cat " * 50)]
    train = write_jsonl(tmp_path / "a.jsonl", rows)
    section = DataSection(train=str(train), holdout_every=3, whole_rows=True)
    data = prepare(section, tokenizer, 60)
    every = prepare(dataclasses.replace(section, whole_rows=False), tokenizer, 60)
    assert [len(every.train), len(every.held_out), every.counted.cut, every.counted.too_long] == [4, 2, 2, 0]
    assert [len(data.train), len(data.held_out), data.counted.cut, data.counted.too_long] == [2, 1, 0, 2]
    assert (data.counted_held_out.cut, data.counted_held_out.too_long) == (0, 1)
    ends = [ids[-2:] for part in (data.train, data.held_out) for ids in part["input_ids"]]
    assert all(tokenizer.eos_token_id in end for end in ends)
    with pytest.raises(
        PacaError, match=r"6 of 6 rows are longer than training\.max_length = 10, and left out by data"
    ):
        prepare(section, tokenizer, 10)
    text = DataSection(train=str(write_text(tmp_path / "a.txt")), holdout_every=3, whole_rows=True)
    with pytest.raises(PacaError, match=r"is plain text, which is cut into blocks .* Leave data\.whole_rows out"):
        prepare(text, tokenizer)


def test_kinds_must_agree(tmp_path):
    section = DataSection(
        train=str(write_text(tmp_path / "a.txt")), eval=str(write_jsonl(tmp_path / "b.jsonl", [CHAT]))
    )
    with pytest.raises(PacaError, match=r"data\.train holds plain text and data\.eval conversations"):
        read_data(section)


def test_what_encoding_did_is_counted(tmp_path, tokenizer):
    long_question = {"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]}
    long_answer = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * 200}]}
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, CHAT, long_question, long_answer])
    counted = prepare(DataSection(train=str(path), holdout_every=4), tokenizer, length=64).counted
    assert (len(counted.lengths), counted.cut, counted.dropped) == (3, 2, 1)
    assert max(counted.lengths) > 200


def test_prompts_are_not_learned_and_completions_are_with_their_end(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "The cat", "completion": " jumps"}] * 2)
    (row,) = prepare(DataSection(train=str(path), holdout_every=2), tokenizer).train
    assert tokenizer.decode(row["input_ids"]) == "The cat jumps<|im_end|>"
    assert tokenizer.decode([label for label in row["labels"] if label >= 0]) == " jumps<|im_end|>"


def mixed(tmp_path, tokenizer, weights, seed=42, sizes=(40, 10)):
    paths = [
        write_jsonl(
            tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": f" {number}"} for number in range(size)]
        )
        for name, size in zip("ab", sizes, strict=True)
    ]
    section = DataSection(train=[str(path) for path in paths], holdout_every=5, weights=weights)
    data = prepare_data(read_data(section), section, tokenizer, 64, seed)
    held_out, train = ([tokenizer.decode(ids) for ids in part["input_ids"]] for part in (data.held_out, data.train))
    return held_out, train


def test_weights_are_the_shares_of_the_sources(tmp_path, tokenizer):
    held_out, train = mixed(tmp_path, tokenizer, [1.0, 3.0])
    share = sum(text.startswith("b") for text in train) / len(train)
    assert 0.65 < share < 0.85
    assert {text[0] for text in held_out} == {"a", "b"}
    assert not set(held_out) & set(train)  # what is repeated is what is trained on
    assert len({text for text in train if text.startswith("a")}) == 32  # every row is seen
    assert mixed(tmp_path, tokenizer, [1.0, 3.0])[1] == train
    assert mixed(tmp_path, tokenizer, [1.0, 3.0], seed=1)[1] != train


def test_text_may_be_mixed_with_conversations(tmp_path, tokenizer):
    paths = [
        write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 40}] * 9),
        write_jsonl(tmp_path / "b.jsonl", [CHAT] * 9),
    ]
    section = DataSection(train=list(map(str, paths)), holdout_every=3, weights=[1, 1])
    rows = list(prepare(section, tokenizer, length=64).train["labels"])
    assert {min(labels) < 0 for labels in rows} == {True, False}


def test_too_little_data(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "alone"}])
    with pytest.raises(PacaError, match="has 1 rows, too few to hold some out and train on the rest"):
        prepare(DataSection(train=str(path), holdout_every=10), tokenizer)
    chat = write_jsonl(tmp_path / "b.jsonl", [CHAT])
    with pytest.raises(PacaError, match=r"all 1 rows lose what they teach at training.max_length = 8; .* 44 tokens"):
        prepare(DataSection(train=str(chat), eval=str(path.with_name("b.jsonl"))), tokenizer, length=8)


LONG = {"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]}


@pytest.mark.road("lengths")
@pytest.mark.parametrize(
    ("train", "held_out", "expected"),
    [
        (
            [LONG] * 8,
            None,
            r"data.train = .*: all 8 rows lose .*max_length = 64; the longest has 23\d tokens: raise it",
        ),
        ([LONG] * 3, [CHAT], r"data.train = .*a.jsonl.*: all 3 rows lose what they teach"),
        ([CHAT] * 3, [LONG] * 2, r"data.eval = .*b.jsonl.*: all 2 held-out rows lose what they teach .*: raise it"),
        ([LONG, CHAT, CHAT], None, r"data.train = .*: all 1 held-out rows lose what they teach at"),
    ],
)
def test_rows_that_lose_all_they_teach(tmp_path, tokenizer, train, held_out, expected):
    path = write_jsonl(tmp_path / "a.jsonl", train)
    named = {"eval": str(write_jsonl(tmp_path / "b.jsonl", held_out))} if held_out else {"holdout_every": 4}
    with pytest.raises(PacaError, match=expected):
        prepare(DataSection(train=str(path), **named), tokenizer, length=64)
    section = DataSection(train=str(path), **named)
    assert len(prepare(section, tokenizer, length=None).train) >= 2  # the length alone is what is wrong


@pytest.mark.road("lengths")
def test_a_source_of_a_mixture_that_loses_all(tmp_path, tokenizer):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [row] * 4) for name, row in (("a", CHAT), ("b", LONG))]
    section = DataSection(train=list(map(str, paths)), holdout_every=2, weights=[1, 1])
    with pytest.raises(PacaError, match="all 2 rows lose what they teach at "):
        prepare(section, tokenizer, length=64)


@pytest.mark.road("lengths")
def test_held_out_rows_are_counted_too(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [LONG, CHAT, CHAT, CHAT])
    data = prepare(DataSection(train=str(path), holdout_every=2), tokenizer, length=64)
    assert (data.counted.cut, data.counted.dropped, len(data.counted.lengths)) == (0, 0, 2)
    held_out = data.counted_held_out
    assert (held_out.cut, held_out.dropped, len(held_out.lengths)) == (1, 1, 2)


UNMARKED = {"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "weight": 0}]}


@pytest.mark.road("fields")
def test_rows_whose_answers_are_all_marked_are_left_out_and_told(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, CHAT, UNMARKED, CHAT])
    data = prepare(DataSection(train=str(path), holdout_every=4), tokenizer, length=64)
    assert len(data.train) == 2
    assert data.remarks.lines() == [
        f"1 row: all answers are marked to carry no loss, so the row is left out; for instance {path}:3"
    ]
    path = write_jsonl(tmp_path / "b.jsonl", [UNMARKED] * 4)
    with pytest.raises(PacaError, match=r"has nothing that carries loss\. 4 rows: all answers are marked"):
        prepare(DataSection(train=str(path), holdout_every=4), tokenizer, length=64)


@pytest.mark.road("templates")
def test_rows_that_a_template_can_not_write_are_named(tmp_path, tokenizer):
    strange = {"messages": [{"role": "user", "content": "boom"}, *CHAT["messages"][1:]]}
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, CHAT, strange, strange, strange, strange])
    refusing = copy.deepcopy(tokenizer)
    for wrong in ("raise_exception('no boom')", "1 + 'x'", "[][0].x", "messages['x'].y.z", "1 / 0"):
        refusing.chat_template = (
            "{% for m in messages %}{% if m.content == 'boom' %}{{ "
            + wrong
            + " }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
        )
        with pytest.raises(PacaError) as caught:
            prepare(DataSection(train=str(path), holdout_every=6), refusing, length=64)
        lines = str(caught.value).split("\n")
        assert [line.split(": ")[0] for line in lines[:3]] == [f"{path}:{number}" for number in (3, 4, 5)]
        assert "can't write turns of the roles user, assistant: " in lines[0]
        assert lines[3] == "and 1 more"
