"""`paca finetune` with `task: preference` on two processes: the same run as on one."""

import json

import pytest
import torch
from tests.distributed.launch import on_ranks
from tests.distributed.test_finetune import AS_TWO, FSDP2, adapter, interrupted, run
from tests.workbench.tiny import recipe_content, save_model, write_jsonl, write_recipe, write_text

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune

MEASURED = ("accuracy", "likelihood_accuracy", "margin", "loss", "kl")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Of six steps on 16 pairs, with nine held out: from a base, and from an adapter trained on text."""
    folder = tmp_path_factory.mktemp("preferences")
    model = save_model(folder / "model")
    content = recipe_content(model, write_text(folder / "text.txt"), folder / "text")
    finetune(read_recipe(write_recipe(folder / "text.yaml", content)), doctor=False)
    pairs = [
        {
            "prompt": f"Which one, {number}?",
            "chosen": f" The cat {number}",
            "rejected": f" A dog, {number}, or another",
        }
        for number in range(25)
    ]
    content["task"] = "preference"
    content["data"] = {"train": str(write_jsonl(folder / "pairs.jsonl", pairs)), "holdout_every": 3}
    content["training"].update(max_length=80, beta=0.5, save_steps=3, dataloader_drop_last=True)
    content["method"]["random_seed"] = 0
    written = {"base": write_recipe(folder / "base.yaml", content)}
    del content["method"]
    content["model"]["adapter"] = str(folder / "text")
    return {**written, "adapter": write_recipe(folder / "adapter.yaml", content)}


def assert_equal_runs(one, other, folders):
    for key in ("before", "after"):
        assert one[key]["tokens"] == other[key]["tokens"]
        assert one[key]["answers"] == other[key]["answers"] == 18
        assert [one[key][name] for name in MEASURED] == pytest.approx(
            [other[key][name] for name in MEASURED], abs=1e-5
        )
    tensors, references = (adapter(folder) for folder in folders)
    assert tensors.keys() == references.keys()
    assert max(float((tensors[name] - references[name]).abs().max()) for name in tensors) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("engine", [{}, FSDP2], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("source", ["base", "adapter"])
def test_two_processes_and_one_each_resumed_on_the_other(source, engine, recipes, tmp_path):
    alone = run(0, recipes[source], tmp_path / "one", [AS_TWO])
    both, _ = on_ranks(run, recipes[source], tmp_path / "two", (), False, engine)
    assert both["before"]["accuracy"] == 0.5
    assert both["after"]["margin"] > 0.01
    assert_equal_runs(both, alone, (tmp_path / "two", tmp_path / "one"))
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["after"] == both["after"]
    from_two = interrupted(tmp_path / "two", tmp_path / "from two")
    resumed = run(0, recipes[source], from_two, [AS_TWO], True)
    assert_equal_runs(resumed, alone, (from_two, tmp_path / "one"))
    from_one = interrupted(tmp_path / "one", tmp_path / "from one")
    resumed, _ = on_ranks(run, recipes[source], from_one, (), True, engine)
    assert_equal_runs(resumed, alone, (from_one, tmp_path / "one"))


@pytest.mark.slow
def test_kto_on_two_processes(recipes, tmp_path):
    both, _ = on_ranks(run, recipes["base"], tmp_path / "run", ("training.loss_type=kto",), False, {})
    assert both["before"]["accuracy"] == 0.5 < both["after"]["accuracy"]
    assert both["after"]["answers"] == 18
    assert torch.isfinite(torch.tensor(both["after"]["margin"]))
