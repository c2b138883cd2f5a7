"""`paca finetune` on two processes: the same run as on one, and resumed on another number of them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.launch import on_ranks
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca import PacaError
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune

AS_TWO = "training.gradient_accumulation_steps=2"
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
OFFLOADED = {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
MIXED = {**FSDP2, "ACCELERATE_MIXED_PRECISION": "bf16"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Eight steps without dropout: which numbers a rank draws for it depends on how many ranks there are."""
    folder = tmp_path_factory.mktemp("ranks")
    model = save_model(folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    content = recipe_content(model, write_text(folder / "text.txt"), folder / "run")
    content["training"].update(dataloader_drop_last=True, save_steps=3)
    content["method"]["random_seed"] = 0
    return write_recipe(folder / "recipe.yaml", content)


def run(rank, path, output, overrides=(), resume=False, environment=None):
    """One rank's run; what accelerate's config file says comes to it as environment variables."""
    os.environ.update(environment or {})
    return finetune(read_recipe(path, list(overrides), str(output)), resume=resume)


def interrupted(whole, folder, step=3):
    """The folder as it was after the third of six steps, or after the last."""
    shutil.copytree(whole, folder)
    for name in ("metrics.json", "loss.png", "adapter", *(["checkpoint-6"] if step == 3 else [])):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_equal_runs(one, other):
    for metrics, reference in ((one, other),):
        for key in ("before", "after"):
            assert metrics[key]["tokens"] == reference[key]["tokens"]
            assert metrics[key]["loss"] == pytest.approx(reference[key]["loss"], abs=1e-6)
        curves = [[loss for _, loss in run["loss_curve"]] for run in (metrics, reference)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-4)  # Trainer's log keeps five decimals or fewer
    tensors, references = (adapter(Path(run["adapter"]).parent) for run in (one, other))
    assert tensors.keys() == references.keys()
    assert max(float((tensors[name] - references[name]).abs().max()) for name in tensors) < 1e-6


@pytest.mark.slow
def test_two_processes_one_process_and_each_resumed_on_the_other(recipe, tmp_path):
    alone = run(0, recipe, tmp_path / "one", [AS_TWO])
    both, _ = on_ranks(run, recipe, tmp_path / "two")
    assert both["steps"] == alone["steps"] == 6
    assert both["loss_curve"][0][1] > both["loss_curve"][-1][1]
    assert_equal_runs(both, alone)
    from_two = interrupted(tmp_path / "two", tmp_path / "from two")
    assert_equal_runs(run(0, recipe, from_two, [AS_TWO], True), both)
    from_one = interrupted(tmp_path / "one", tmp_path / "from one")
    assert_equal_runs(on_ranks(run, recipe, from_one, (), True)[0], alone)
    for message in on_ranks(refused, recipe, tmp_path / "two"):
        assert "holds a finished run. Add --overwrite" in message
    with pytest.raises(PacaError, match=r"takes 4 sequences per step .2 processes when it was started., .* take 2"):
        run(0, recipe, tmp_path / "two", resume=True)


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """The run of one process."""
    return run(0, recipe, tmp_path_factory.mktemp("alone") / "run", [AS_TWO])


def folder_of(metrics):
    return Path(metrics["adapter"]).parent


@pytest.mark.slow
def test_fsdp2_and_one_process_each_resumed_on_the_other(recipe, alone, tmp_path):
    sharded, _ = on_ranks(run, recipe, tmp_path / "two", (), False, FSDP2)
    assert_equal_runs(sharded, alone)
    checkpoint = tmp_path / "two" / "checkpoint-3"
    assert sorted(path.name for path in checkpoint.glob("*/*.distcp")) == ["__0_0.distcp"] * 2 + ["__1_0.distcp"] * 2
    assert not list(checkpoint.glob("*.safetensors"))
    from_two = interrupted(tmp_path / "two", tmp_path / "from two")
    assert_equal_runs(run(0, recipe, from_two, [AS_TWO], True), sharded)
    from_one = interrupted(folder_of(alone), tmp_path / "from one")
    assert_equal_runs(on_ranks(run, recipe, from_one, (), True, FSDP2)[0], alone)
    over = interrupted(tmp_path / "two", tmp_path / "over", step=6)
    assert_equal_runs(on_ranks(run, recipe, over, (), True, FSDP2)[0], sharded)


@pytest.mark.slow
def test_fsdp2_with_weights_on_rank_0_alone_and_offloaded(recipe, alone, tmp_path):
    assert_equal_runs(on_ranks(run, recipe, tmp_path / "run", (), False, OFFLOADED)[0], alone)


@pytest.mark.slow
def test_fsdp2_in_mixed_precision(recipe, alone, tmp_path):
    metrics, _ = on_ranks(run, recipe, tmp_path / "run", ("training.bf16=true",), False, MIXED)
    assert metrics["after"]["loss"] == pytest.approx(alone["after"]["loss"], abs=2e-2)
    assert metrics["after"]["loss"] != alone["after"]["loss"]
    assert {tensor.dtype for name, tensor in adapter(tmp_path / "run").items() if "delta" in name} == {torch.float32}


def refused(rank, *arguments):
    try:
        run(rank, *arguments)
    except PacaError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        ([], {"FSDP_VERSION": "1"}, "FSDP1 flattens parameters.*Set fsdp_version: 2 in accelerate's fsdp_config"),
        ([], {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, "Set fsdp_state_dict_type: SHARDED_STATE_DICT"),
        (["method.reselect_every=2"], {}, "method.reselect_every: connections can't move in a sharded model"),
        (["method.selection=gradient"], {}, "needs data, and thus the whole model on every rank"),
    ],
)
def test_what_cannot_be_sharded_is_refused(recipe, tmp_path, overrides, environment, message):
    for found in on_ranks(refused, recipe, tmp_path / "run", overrides, False, {**FSDP2, **environment}):
        assert re.search(message, found), found
    assert not list(tmp_path.glob("run/checkpoint*"))
