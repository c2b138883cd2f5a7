"""Training data as it is shown."""

from tests.workbench.tiny import write_jsonl, write_recipe

from paca.workbench.cli.main import main
from paca.workbench.data.loss_facts import count_loss
from paca.workbench.data.preview import histogram, pieces, render

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
