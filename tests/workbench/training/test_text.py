"""Whole runs of a tiny model: what they write, and what each key of a recipe changes."""

import json
import math
import shlex

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.workbench.tiny import same, write_jsonl, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from paca import PacaError
from paca.workbench.cli.main import main
from paca.workbench.export.verified import export
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.adapted import find_source, load_adapted
from paca.workbench.training.report import closing_lines
from paca.workbench.training.run import finetune


def run(content, tmp_path, *overrides, **flags):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), overrides)
    return finetune(recipe, **flags)


def adapter(tmp_path, folder="run"):
    return load_file(tmp_path / folder / "adapter" / "adapter_model.safetensors")


def test_a_run_leaves_everything_that_was_promised(content, tmp_path):
    metrics = run(content, tmp_path)
    folder = tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert metrics["before"]["perplexity"] == pytest.approx(math.exp(metrics["before"]["loss"]))
    assert metrics["held_out"] == {"sequences": 8, "total": metrics["held_out"]["total"]}
    assert metrics["held_out"]["total"] > 8
    assert [step for step, _ in metrics["loss_curve"]] == [1, 2, 3, 4, 5, 6]
    assert metrics["tokens"] == 6 * 2 * 16
    assert metrics["tokens_per_second"] > 0
    assert metrics["recipe"]["method"] == content["method"]
    assert torch.__version__.startswith(metrics["versions"]["torch"])
    # Rank 4 of all 7 projections of 2 layers: 4 columns of (32 + 16 + 16 + 32 + 64 + 64 + 32) outputs.
    assert metrics["trained_parameters"] == 2 * 4 * 256
    assert metrics["peak_bytes"] > sum(tensor.nbytes for tensor in adapter(tmp_path).values())
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "adapter",
        "before.json",
        "checkpoint-4",
        "checkpoint-6",
        "loss.png",
        "metrics.json",
        "recipe.yaml",
    ]


def test_the_measured_loss_is_that_of_the_saved_adapter(content, tmp_path):
    metrics = run(content, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(content["model"]["name"])
    tokenizer = AutoTokenizer.from_pretrained(content["model"]["name"])
    text = (tmp_path / "text.txt").read_text()
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    blocks = [ids[start : start + 16] for start in range(0, len(ids), 16)][::5]
    chosen = [torch.tensor([blocks[index * len(blocks) // 8]]) for index in range(8)]
    for key in ("before", "after"):
        model = base if key == "before" else PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
        losses = [model(input_ids=block, labels=block).loss.item() for block in chosen]
        assert metrics[key]["loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)
        assert metrics[key]["tokens"] == 8 * 15


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(content, tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(content, tmp_path, f"output_dir={tmp_path / folder}", f"seed={seed}")
    assert same(adapter(tmp_path, "a"), adapter(tmp_path, "b"))
    assert not same(adapter(tmp_path, "a"), adapter(tmp_path, "c"))


def test_any_method_of_peft(content, tmp_path):
    content["method"] = {"name": "lora", "r": 2, "target_modules": ["q_proj"]}
    metrics = run(content, tmp_path)
    assert metrics["trained_parameters"] == 2 * 2 * (32 + 32)
    assert all("lora_" in name for name in adapter(tmp_path))


def test_moslora_is_a_method_whose_adapter_loads_and_merges(content, tmp_path):
    content["method"] = {"name": "moslora", "r": 2, "target_modules": ["q_proj"]}
    run(content, tmp_path)
    assert any("lora_mixer" in name for name in adapter(tmp_path))
    tuned, _ = load_adapted(find_source(str(tmp_path / "run")))
    export(str(tmp_path / "run" / "adapter"), "merged", str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    inputs = torch.arange(3, 15)[None]
    torch.testing.assert_close(merged(inputs).logits, tuned.eval()(inputs).logits)


def test_the_base_model_may_be_held_in_less_precision(content, tmp_path):
    full = run(content, tmp_path)
    half = run(content, tmp_path, "model.dtype=bfloat16", f"output_dir={tmp_path / 'half'}")
    assert half["peak_bytes"] < full["peak_bytes"]


def test_lean_forwards_keep_less_and_learn_the_same(content, tmp_path, capsys):
    plain = run(content, tmp_path)
    assert "lean forwards" not in capsys.readouterr().err
    lean = run(content, tmp_path, "training.lean=true", f"output_dir={tmp_path / 'lean'}")
    assert "note: lean forwards for LlamaAttention × 2, LlamaMLP × 2, LlamaRMSNorm × 5" in capsys.readouterr().err
    assert lean["peak_bytes"] < plain["peak_bytes"]
    assert lean["after"]["loss"] == pytest.approx(plain["after"]["loss"], rel=1e-5)
    assert lean["after"]["loss"] < lean["before"]["loss"] - 1e-3


def test_conversations(content, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * 5}]}
        for word in ("cat ", "dog ", "fox ", "mat ")
    ]
    content["data"] = {"train": str(write_jsonl(tmp_path / "chat.jsonl", rows)), "holdout_every": 4}
    metrics = run(content, tmp_path, "training.max_length=128")
    tokenizer = AutoTokenizer.from_pretrained(content["model"]["name"])
    assert metrics["held_out"] == {"sequences": 1, "total": 1}
    assert metrics["before"]["tokens"] == len(tokenizer("cat " * 5 + "<|im_end|>")["input_ids"])
    assert metrics["after"]["loss"] < metrics["before"]["loss"]


def test_no_held_out_sequence_is_left_out(content, tmp_path):
    metrics = run(content, tmp_path, "training.dataloader_drop_last=true", "training.per_device_eval_batch_size=100")
    assert metrics["after"]["tokens"] == 8 * 15


def test_evaluations_on_the_way_are_in_the_curve(content, tmp_path):
    metrics = run(content, tmp_path, "training.eval_strategy=steps", "training.eval_steps=3")
    assert [step for step, _ in metrics["eval_curve"]] == [3, 6]
    assert metrics["eval_curve"][-1][1] == pytest.approx(metrics["after"]["loss"], rel=1e-3)


def test_a_finished_run_is_reported_again_by_resume_and_replaced_by_overwrite(content, tmp_path):
    first = run(content, tmp_path)
    with pytest.raises(PacaError, match="holds a finished run"):
        run(content, tmp_path)
    assert closing_lines(run(content, tmp_path, resume=True)) == closing_lines(first)
    assert run(content, tmp_path, "seed=5", overwrite=True)["recipe"]["seed"] == 5


def test_bad_data_leaves_no_folder(content, tmp_path):
    with pytest.raises(PacaError, match="There is no data file"):
        run(content, tmp_path, f"data.train={tmp_path / 'texd.txt'}")
    assert not (tmp_path / "run").exists()


def test_a_method_that_does_not_fit_the_model(content, tmp_path):
    with pytest.raises(PacaError, match=r"'lora' can't be trained on .* like this: Target module LlamaRMSNorm"):
        run({**content, "method": {"name": "lora", "target_modules": ["input_layernorm"]}}, tmp_path)


def test_closing_lines_say_how_to_merge_and_it_works_as_printed(content, tmp_path):
    metrics = run(content, tmp_path)
    improved, lies, merge = closing_lines(metrics)
    assert improved.startswith("improved: held-out perplexity ")
    assert improved.endswith(f"(8 of {metrics['held_out']['total']} held-out sequences, 120 tokens)")
    assert lies.startswith(f"adapter: {tmp_path / 'run' / 'adapter'} (2,048 trained parameters, ")
    assert main(shlex.split(merge.removeprefix("merge: paca "))) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    base = AutoModelForCausalLM.from_pretrained(content["model"]["name"])
    inputs = torch.arange(12)[None]
    before = base(inputs).logits
    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    torch.testing.assert_close(merged(inputs).logits, tuned(inputs).logits)
    assert not torch.allclose(merged(inputs).logits, before, atol=1e-3)


@pytest.mark.road("comparisons")
@pytest.mark.parametrize("rate", ["0.0", "1e-12"])
def test_nothing_gained_is_said_plainly(content, tmp_path, rate):
    metrics = run(content, tmp_path, "training.max_steps=1", f"training.learning_rate={rate}")
    assert closing_lines(metrics)[0].startswith("unchanged: held-out perplexity ")
    metrics["after"]["perplexity"] = 2 * metrics["before"]["perplexity"]
    assert closing_lines(metrics)[0].startswith("worse: held-out perplexity ")
