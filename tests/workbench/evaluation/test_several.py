"""Several models in one evaluation, over one loading of their base; and what of two answers they prefer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.workbench.tiny import run, same, write_jsonl
from transformers import AutoModelForCausalLM

from paca import PacaError
from paca.workbench.cli.main import main
from paca.workbench.evaluation.evaluate import evaluate
from paca.workbench.evaluation.request import Request
from paca.workbench.training import adapted
from paca.workbench.training.adapted import SharedBase, find_source

WORDS = ("cat", "dog", "fox", "mat", "log", "hat")
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Which one, {number}?"}],
        "chosen": [{"role": "assistant", "content": f"The {word} jumps."}],
        "rejected": [{"role": "assistant", "content": f"No {word} at all, {number}"}],
    }
    for number, word in enumerate(WORDS)
]


@pytest.fixture
def models(folder, tmp_path):
    """The model itself, an adapter of it, one with other updates, and a LoRA."""
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    second, lora = tmp_path / "second" / "adapter", tmp_path / "lora" / "adapter"
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    for name, parameter in model.named_parameters():
        if "paca_delta" in name:
            parameter.data.mul_(-1)
    model.save_pretrained(second)
    other = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    other.save_pretrained(lora)
    return [str(folder / "adapter"), str(tmp_path / "second"), str(folder / "model"), str(tmp_path / "lora")]


@pytest.fixture
def loaded(monkeypatch):
    """The names of the base models that were loaded."""
    names, load = [], adapted.load_model
    monkeypatch.setattr(adapted, "load_model", lambda name, *more: names.append(name) or load(name, *more))
    return names


def test_several_are_measured_as_each_by_itself_over_one_loading(models, tmp_path, loaded):
    text = str(write_jsonl(tmp_path / "pairs.jsonl", [{"text": "The cat jumps over the mat. " * 20}]))
    alone = []
    for number, name in enumerate(models):
        (done,) = evaluate(Request(name, ["perplexity"], text=[text], length=32, output=str(tmp_path / str(number))))
        alone.append(done.result["perplexity"])
    assert len(set(alone)) == 4
    assert len(loaded) == 4
    loaded.clear()
    request = Request(models[0], ["perplexity"], models[1:], text=[text], length=32, output=str(tmp_path / "all"))
    together = list(evaluate(request))
    assert [done.result["perplexity"] for done in together] == alone
    assert len(loaded) == 1
    assert len({done.file for done in together}) == 4
    loaded.clear()
    assert [done.result["perplexity"] for done in evaluate(request)] == alone
    assert not loaded, "finished ones are only shown again"


def test_merged_ones_are_loaded_one_by_one(models, tmp_path, loaded):
    text = str(write_jsonl(tmp_path / "text.jsonl", [{"text": "The cat jumps over the mat. " * 20}]))
    options = {"text": [text], "length": 32, "merged": True}
    together = list(evaluate(Request(models[0], ["perplexity"], models[1:2], output=str(tmp_path / "all"), **options)))
    (alone,) = evaluate(Request(models[1], ["perplexity"], output=str(tmp_path / "one"), **options))
    assert together[1].result["perplexity"] == alone.result["perplexity"] != together[0].result["perplexity"]
    assert len(loaded) == 3


def test_the_base_that_the_next_gets_is_as_it_was(models, folder):
    bases = SharedBase()
    fresh = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    for name in (*models, *models):
        model, _ = bases.load(find_source(name))
        with torch.no_grad():
            model(torch.arange(8)[None])
    model, _ = bases.load(find_source(models[2]))
    assert same(dict(model.state_dict()), dict(fresh))


def test_one_that_is_refused_stops_all_before_any_is_loaded(models, tmp_path, loaded):
    (tmp_path / "all" / "x").mkdir(parents=True)
    with pytest.raises(PacaError, match="holds neither an adapter"):
        list(evaluate(Request(models[0], ["perplexity"], [str(tmp_path / "all")], text=["python-reference"])))
    assert not loaded


def test_what_is_preferred_is_what_the_run_measured(folder, tmp_path, content, capsys):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", PAIRS * 2)
    content |= {"task": "preference", "data": {"train": str(pairs), "eval": str(pairs)}}
    content["training"].update(max_length=80)
    metrics = run(content, tmp_path)["after"]
    capsys.readouterr()
    command = [
        "eval",
        str(tmp_path / "run"),
        "--tasks",
        "preference",
        "--text",
        str(pairs),
        "--length",
        "80",
        "--json",
    ]
    for size in ("1", "5"):
        assert main([*command, "--batch-size", size, "--output", str(tmp_path / size)]) == 0
        found = json.loads(capsys.readouterr().out)
        for key in ("accuracy", "likelihood_accuracy", "answers", "tokens"):
            assert found[key] == metrics[key]
        for key in ("margin", "kl", "loss"):
            assert found[key] == pytest.approx(metrics[key], rel=1e-3)
        assert metrics["margin"] > 0


def test_what_is_preferred_over_another_adapter_is_what_a_run_that_began_with_it_measured(
    models, folder, content, tmp_path, capsys
):
    pairs = str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS * 2))
    content |= {"task": "preference", "data": {"train": pairs, "eval": pairs}}
    content["model"] |= {"name": str(folder / "model"), "adapter": models[0]}
    content["training"].update(max_length=80)
    del content["method"]
    metrics = run(content, tmp_path, doctor=False)["after"]
    command = ["eval", str(tmp_path / "run"), "--tasks", "preference", "--text", pairs, "--length", "80"]
    capsys.readouterr()
    assert main([*command, "--json", "--reference", models[0], "--output", str(tmp_path / "one")]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ("accuracy", "margin", "kl", "loss"):
        assert found[key] == pytest.approx(metrics[key], rel=1e-3)
    assert main([*command, "--json", "--output", str(tmp_path / "two")]) == 0
    assert json.loads(capsys.readouterr().out)["kl"] != pytest.approx(metrics["kl"], rel=1e-3)
    assert main([*command, "--reference", models[1], "--output", str(tmp_path / "one")]) == 2
    assert "reference" in capsys.readouterr().err
    command[1:2] = models[:2]
    assert main([*command, "--reference", models[0], "--output", str(tmp_path / "all")]) == 0
    itself, other = capsys.readouterr().out.strip().split("preference: ")[1:]
    assert f"KL from {models[0]} 0.0000" in itself
    assert "KL from the base" not in other
    assert "0.0000 nats" not in other


def test_rows_that_are_cut_are_told(models, tmp_path, capsys):
    long = {**PAIRS[0], "prompt": [{"role": "user", "content": "Which one? " * 20}]}
    data = str(write_jsonl(tmp_path / "pairs.jsonl", [*PAIRS, long]))
    command = ["eval", models[0], "--tasks", "preference", "--text", data, "--output", str(tmp_path / "out")]
    assert main([*command, "--length", "100"]) == 0
    assert "1 of 7 rows are cut at 100 tokens, 1 of them left out since nothing" in capsys.readouterr().out
    assert main([*command, "--length", "1000", "--overwrite"]) == 0
    assert "cut at" not in capsys.readouterr().out


REFUSED = {
    "merged": (["{0}", "--merged"], "which --merged leaves no copy of. Leave --merged out"),
    "a reference that is nowhere": (["{0}", "--reference", "nowhere"], "There is no folder 'nowhere'"),
    "a reference that is a model": (["{0}", "--reference", "{2}"], "There is no adapter in"),
    "a model with a reference": (["{2}", "--reference", "{0}"], "--reference compares adapters, and"),
    "another method": (["{0}", "--reference", "{3}"], "is an adapter of the method LORA, and"),
    "another base": (["{0}", "--reference", "{other}"], "Name a reference of the same base model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(case, models, tmp_path, loaded, capsys):
    other = tmp_path / "other" / "adapter"
    shutil.copytree(Path(models[1]) / "adapter", other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    words, said = REFUSED[case]
    data = str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS))
    words = [word.format(*models, other=other) for word in words]
    assert main(["eval", *words, "--tasks", "preference", "--text", data, "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not loaded


def test_labels_limits_and_a_model_that_is_its_own_base(models, tmp_path, capsys):
    rows = [
        {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
        for pair in PAIRS
        for name in ("chosen", "rejected")
    ]
    data = str(write_jsonl(tmp_path / "labels.jsonl", rows))
    command = [
        "eval",
        models[2],
        models[0],
        "--tasks",
        "preference",
        "--text",
        data,
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--limit", "4"]) == 0
    base, adapter = capsys.readouterr().out.strip().split("preference: ")[1:]
    assert "accuracy 50.0% ± 35.4% of 4 rows, reward margin 0.000" in base
    assert "KL from the base 0.0000" in base
    assert "KL from the base 0.0000" not in adapter
    assert main([*command, "--limit", "4", "--beta", "0"]) == 2
    assert "beta = 0.0: expected more than 0" in capsys.readouterr().err


def test_an_interrupted_one_goes_on(models, tmp_path):
    data = str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS))
    request = Request(models[0], ["preference"], text=[data], output=str(tmp_path / "out"))
    (whole,) = evaluate(request)
    sums = tmp_path / "out" / "preference" / "sums.jsonl"
    assert len(sums.read_text().splitlines()) == len(PAIRS)
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:2]))
    (tmp_path / "out" / "preference" / "result.json").unlink()
    (again,) = evaluate(request)
    assert again.result["margin"] == whole.result["margin"]
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(PacaError, match="add --text FILE, rows with 'chosen' and 'rejected'"):
        list(evaluate(Request(models[0], ["preference"])))
