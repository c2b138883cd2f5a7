"""Selection by data as one line of a recipe."""

import pytest
import torch
from safetensors.torch import load_file
from tests.workbench.tiny import write_recipe

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune


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
