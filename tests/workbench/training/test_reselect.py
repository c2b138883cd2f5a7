"""Connections that move, in whole runs of a recipe."""

import json
import shutil

import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.workbench.tiny import write_recipe
from transformers import AutoModelForCausalLM

from paca.tuner.reselect import ReselectCallback
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune


def run(content, tmp_path, *lines, **flags):
    """Six steps, a checkpoint every second, moved every third."""
    lines = ["method.random_seed=0", *lines]
    return finetune(read_recipe(write_recipe(tmp_path / "recipe.yaml", content), lines), **flags)


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


def test_new_connections_warm_up():
    class Config:
        reselect_every, reselect_warmup = 10, 4

    class Model:
        peft_config = {"default": Config}  # noqa: RUF012 - stands for a PeftModel

    group = {"lr": 1.0}
    optimizer = type("Optimizer", (), {"param_groups": [group]})
    callback, rates = ReselectCallback(), []
    for step in range(16):
        state = type("State", (), {"global_step": step})
        callback.on_pre_optimizer_step(None, state, None, model=Model, optimizer=optimizer)
        rates.append(round(group["lr"], 3))
        callback.on_optimizer_step(None, state, None, model=Model, optimizer=optimizer)
        assert group["lr"] == 1.0
    assert rates == [1.0] * 10 + [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
