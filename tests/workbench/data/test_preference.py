"""Rows with preferences as tokens: where answers begin and end, what is held out, cut and left out."""

import pytest
from tests.workbench.tiny import make_tokenizer

from paca import PacaError
from paca.workbench.data.documents import Documents
from paca.workbench.data.formats import Row
from paca.workbench.data.preference import (
    encode_answers,
    encode_preferences,
    hold_out_prompts,
    prepare_preferences,
    sequences,
)
from paca.workbench.data.prepare import Counted, RawData
from paca.workbench.data.section import DataSection


def turns(question, *answers):
    said = [[{"role": "assistant", "content": text}] for text in answers]
    row = {"prompt": [{"role": "user", "content": question}], **dict(zip(("chosen", "rejected"), said, strict=False))}
    return Row(row, "here")


def strings(question, *answers):
    return Row({"prompt": question, **dict(zip(("chosen", "rejected"), answers, strict=False))}, "here")


def test_turns_are_written_by_the_chat_template(tokenizer):
    row = turns("The cat?", "The dog", "A fox jumps")
    prompt, (chosen, rejected) = encode_answers(tokenizer, row["prompt"], [row["chosen"], row["rejected"]])
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou help<|im_end|>\n<|im_start|>user\nThe cat?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(chosen) == "The dog<|im_end|>"
    assert tokenizer.decode(rejected) == "A fox jumps<|im_end|>"


def test_strings_end_with_the_eos_token_and_share_no_token_that_differs(tokenizer):
    prompt, (chosen, rejected) = encode_answers(tokenizer, "The ca", ["t jumps", " walks"])
    assert tokenizer.decode([*prompt, *chosen]) == "The cat jumps<|im_end|>"
    assert tokenizer.decode([*prompt, *rejected]) == "The ca walks<|im_end|>"
    assert len(prompt) < len(tokenizer("The ca")["input_ids"]), "cat is a token of its own"


def test_a_template_that_begins_answers_otherwise_than_it_asks_for_them():
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    row = turns("Q", "a", "b")
    with pytest.raises(
        PacaError, match=r"here: The chat template .* asks for an answer with .* which turn 2 does not go on from"
    ):
        encode_preferences([row], make_tokenizer(template), None, paired=True)


def test_rows_of_one_question_are_held_out_together():
    rows = [strings(f"Q{number % 5}", f"a{number}", "b") for number in range(20)]
    kept, held_out = hold_out_prompts(rows, 3)
    assert {row["prompt"] for row in held_out} == {"Q0", "Q3"}
    assert {row["prompt"] for row in kept} == {"Q1", "Q2", "Q4"}
    assert len(kept) + len(held_out) == 20
    later = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "more"}]
    deeper = [turns("Q", "a", "b"), {**turns("Q", "c", "d"), "prompt": [*turns("Q")["prompt"], *later]}]
    assert hold_out_prompts([*deeper, turns("R", "a", "b")], 2)[1] == deeper


@pytest.mark.parametrize("paired", [True, False])
def test_what_cutting_leaves_equal_or_empty_teaches_nothing(paired, tokenizer):
    alike = strings("", "The cat jumps over the mat.", "The cat jumps over the log.")
    rows = [alike, strings("The cat jumps over the mat and the log and more.", "a", "b"), strings("Q", "a", "b")]
    counted = Counted()
    kept = encode_preferences(rows, tokenizer, 5, paired, counted)
    if paired:
        assert len(kept) == 1
        assert (counted.cut, counted.dropped, len(counted.lengths)) == (2, 2, 3)
    else:
        assert [row["label"] for row in kept] == [True, False] * 2, "a single answer teaches whatever the other is"
        assert (counted.cut, counted.dropped, len(counted.lengths)) == (4, 2, 6)


@pytest.mark.parametrize("paired", [True, False])
def test_pairs_that_are_longer_may_be_left_out(paired, tokenizer):
    rows = [strings("Q", "a", "The cat jumps over the mat and the log."), strings("Q", "a", "b")]
    counted = Counted()
    kept = encode_preferences(rows, tokenizer, 5, paired, counted, whole=True)
    assert len(kept) == (1 if paired else 3)
    assert (counted.too_long, counted.cut, counted.dropped) == (1, 0, 0)
    assert all(row["length"] <= 5 for row in kept)


def test_single_answers_are_no_pairs(tokenizer):
    row = Row({"prompt": "Q", "completion": "a", "label": True}, "here")
    with pytest.raises(PacaError, match=r"it has one answer and a label, .*Set training\.loss_type=kto"):
        encode_preferences([row], tokenizer, None, paired=True)
    assert encode_preferences([row], tokenizer, None, paired=False)[0]["label"] is True


def test_kto_takes_rows_in_an_order_of_the_seed(tokenizer):
    raw = RawData([Documents([strings(f"Q{number}", "yes", "no") for number in range(12)])], None)
    section = DataSection(train="x", holdout_every=4)
    one, same, other = (
        list(prepare_preferences(raw, section, tokenizer, None, seed, paired=False).train["prompt_ids"])
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other
    assert sorted(one) == sorted(other)


def test_the_sequences_of_rows_are_cut_and_labelled_in_the_answers_alone():
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}
    assert list(sequences([pair], 3)) == [
        {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]},
        {"input_ids": [1, 2, 5], "labels": [-100, -100, 5]},
    ]
    plain = {"input_ids": [1], "labels": [1]}
    assert list(sequences([plain], 3)) == [plain]
