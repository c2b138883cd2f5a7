"""Training data as it is shown."""

import pytest
from rich.text import Text
from tests.paths import SHARED
from tests.workbench.data.templates import template
from tests.workbench.tiny import write_jsonl, write_recipe

from paca.workbench.cli.main import main
from paca.workbench.data.conversations import encode_conversation
from paca.workbench.data.formats import convert_rows
from paca.workbench.data.loss_facts import count_loss
from paca.workbench.data.preview import LEARNED, histogram, pieces, render

ROWS = [
    {"messages": [{"role": "user", "content": "Say cat"}, {"role": "assistant", "content": "cat"}]},
    {"messages": [{"role": "user", "content": "Say dog"}, {"role": "assistant", "content": "dog"}]},
]


def test_what_is_learned_is_marked(tokenizer):
    ids = tokenizer("The cat jumps")["input_ids"]
    labels = [-100] * (len(ids) - 1) + ids[-1:]
    sequence = {"input_ids": ids, "labels": labels}
    last = tokenizer.decode(ids[-1:])
    assert list(pieces(sequence, tokenizer)) == [(tokenizer.decode(ids[:-1]), False), (last, True)]
    assert render(sequence, tokenizer, colour=False).plain == tokenizer.decode(ids[:-1]) + f"⟦{last}⟧"
    coloured = render(sequence, tokenizer, colour=True)
    assert coloured.plain == "The cat jumps"
    assert "green" in str(coloured.spans[-1].style)
    assert "green" not in str(coloured.spans[0].style)


def test_the_first_token_is_predicted_by_nothing(tokenizer):
    ids = tokenizer("The cat jumps")["input_ids"]
    assert next(pieces({"input_ids": ids, "labels": ids}, tokenizer)) == (tokenizer.decode(ids[:1]), False)
    assert count_loss([{"labels": ids}], {ids[-1]}).learned == len(ids) - 1


def test_a_histogram():
    lines = histogram([1, 2, 9, 10, 20], limit=15, bins=4)
    assert [line.split()[0] for line in lines] == ["1–5", "6–10", "11–15", "16–20"]
    assert [int(line.replace("  cut", "").split()[-1]) for line in lines] == [2, 2, 0, 1]
    assert [line.endswith("cut") for line in lines] == [False, False, False, True]


def test_the_verb(content, tmp_path, capsys):
    content["data"] = {"train": str(write_jsonl(tmp_path / "a.jsonl", ROWS)), "holdout_every": 2}
    content["training"]["max_length"] = 128
    recipe = str(write_recipe(tmp_path / "r.yaml", content))
    assert main(["data", recipe]) == 0
    shown = capsys.readouterr().out
    assert "sequence 1 of 1, " in shown
    assert "assistant\n⟦dog<|im_end|>⟧\n" in shown
    assert "cut at 128 tokens: 0 of 1 rows (0.0%)" in shown
    assert main(["data", recipe, "--rows", "0"]) == 0
    assert "sequence" not in capsys.readouterr().out.split("tokens per row")[0]
    assert not (tmp_path / "run").exists()


CASES = SHARED / "cases" / "road"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")


def shown(content, tmp_path, capsys, source, chat_template, *overrides):
    content["data"] = {"train": str(source), "holdout_every": 2}
    content["training"]["max_length"] = 2048
    content["model"]["chat_template"] = str(chat_template)
    assert main(["data", str(write_recipe(tmp_path / "r.yaml", content)), *overrides]) == 0
    return capsys.readouterr().out


@pytest.mark.road("fields")
@needs_cases
def test_tools_are_shown_under_a_template_that_knows_them(content, tmp_path, capsys):
    out = shown(content, tmp_path, capsys, CASES / "tools_column.jsonl", template("qwen3"))
    assert '<tools>\n{"type": "function", "function": {"name": "rate_of", "description": "Exchange rate"' in out
    assert "not used" not in out
    out = shown(content, tmp_path, capsys, CASES / "tools_column.jsonl", template("deepseekv3"))
    assert "Exchange rate" not in out
    assert "4 rows: the chat template leaves out the 'tools'; for instance " in out


@pytest.mark.road("fields")
@needs_cases
def test_a_turn_that_is_marked_is_shown_as_not_learned(content, tmp_path, capsys):
    out = shown(content, tmp_path, capsys, CASES / "axolotl_train_false.jsonl", "plain")
    assert "### Assistant:\nfive, WRONG<|im_end|>\n" in out
    assert "### Assistant:\n⟦four<|im_end|>⟧\n" in out


@pytest.mark.road("fields")
def test_a_turn_that_is_marked_has_the_colour_of_no_loss(tokenizer):
    turns = [
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "five", "train": False},
        {"role": "user", "content": "Check."}, {"role": "assistant", "content": "four", "train": True},
    ]  # fmt: skip
    (row,) = convert_rows([("here", {"messages": turns})])
    text = render(encode_conversation(tokenizer, row, None), tokenizer, colour=True)
    assert isinstance(text, Text)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert next(style for piece, style in styles.items() if "five" in piece) == "dim"
    assert next(style for piece, style in styles.items() if "four" in piece) == LEARNED


@pytest.mark.road("templates")
@needs_cases
def test_thoughts_that_a_template_leaves_out_are_counted(content, tmp_path, capsys):
    out = shown(content, tmp_path, capsys, CASES / "think.jsonl", template("deepseekv3"))
    assert "4 rows: the chat template leaves out the thoughts of an earlier answer; for instance " in out
    assert "4 rows: the chat template leaves out the thoughts of an answer; for instance " in out
    assert "leaves out" not in shown(content, tmp_path, capsys, CASES / "think.jsonl", template("qwen3"))


@pytest.mark.road("templates")
@needs_cases
def test_arguments_that_are_strings_are_decoded(content, tmp_path, capsys):
    """The template of Qwen3.5 walks over the arguments: a string is an error there."""
    out = shown(content, tmp_path, capsys, CASES / "strargs2.jsonl", template("qwen3_5_think"))
    assert "<parameter=a>\n1\n</parameter>" in out
