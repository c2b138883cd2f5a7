"""Connections chosen by data, and connections that move, in whole runs of a recipe."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.workbench import tiny
from tests.workbench.tiny import write_recipe
from transformers import AutoModelForCausalLM

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune


def run(content, tmp_path, *lines, **flags):
    """Six steps, a checkpoint every second, moved every third."""
    return tiny.run(content, tmp_path, "method.random_seed=0", *lines, **flags)


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_the_run_moves_and_leaves_one_ordinary_adapter(content, tmp_path):
    metrics = run(content, tmp_path, "method.reselect_every=3")
    folder = tmp_path / "run"
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert metrics["trained_parameters"] == 2 * 4 * 256  # at any one time, as without moves
    base = AutoModelForCausalLM.from_pretrained(content["model"]["name"])
    ids = torch.arange(16)[None]
    with torch.no_grad():
        plain = base.eval()(ids).logits
        loaded = PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits
    assert not torch.allclose(loaded, plain)
    # What was measured at the end of training is what the file gives.
    again = run(content, tmp_path, "method.reselect_every=3", resume=True)
    assert again["after"] == metrics["after"]


def test_a_resumed_run_ends_with_the_same_file(content, tmp_path):
    run(content, tmp_path, "method.reselect_every=3", "training.save_total_limit=3")
    folder, whole = tmp_path / "run", adapter(tmp_path / "run")
    for step in (4, 2):  # after the move, and before it
        for name in ("metrics.json", "adapter", *(f"checkpoint-{later}" for later in range(step + 1, 7))):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        run(content, tmp_path, "method.reselect_every=3", "training.save_total_limit=3", resume=True)
        again = adapter(folder)
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole), step


def indices(content, tmp_path, *overrides):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), ["training.max_steps=1", *overrides])
    finetune(recipe, overwrite=True)
    state = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    return {key: value for key, value in state.items() if key.endswith("paca_indices")}


@pytest.mark.parametrize("selection", ["gradient", "activation"])
def test_one_line_selects_by_data_and_the_same_seed_selects_the_same(content, tmp_path, selection):
    lines = ["method.random_seed=0", f"method.selection={selection}", "method.selection_batches=3"]
    first, again, random = (indices(content, tmp_path, *each) for each in (lines, lines, lines[:1]))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], random[key]) for key in first)
