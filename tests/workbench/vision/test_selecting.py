"""Strategies alone on an image classifier: what its run would train."""

import json

from safetensors.torch import load_file
from tests.workbench.tiny import write_recipe

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune
from paca.workbench.training.selecting import select

LINES = ["method.random_seed=0", "method.selection=gradient", "method.selection_batches=2", "training.max_steps=1"]


def test_a_strategy_chooses_what_a_run_would_train(content, tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), LINES)
    done = select(recipe, ["random", "gradient"], tmp_path / "there")
    finetune(recipe)
    state = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    trained = {key: value.tolist() for key, value in state.items() if key.endswith("paca_indices")}
    chosen = json.loads(done.files["gradient"].read_text())
    assert {f"base_model.model.{name}.paca_indices": indices for name, indices in chosen.items()} == trained
    assert chosen != json.loads(done.files["random"].read_text())
