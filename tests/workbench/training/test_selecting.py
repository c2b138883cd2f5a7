"""Strategies alone: what a run would train, as files that a run takes, and as a picture."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.workbench.tiny import write_recipe

from paca.errors import PacaError
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune
from paca.workbench.training.selecting import select
from paca.workbench.training.selection_picture import counts, kinds_of_layers, votes

LINES = ["method.random_seed=0", "method.selection_batches=3", "training.max_steps=1"]
LINES_OF_IMAGES = [*LINES, "method.selection=gradient", "method.selection_batches=2"]


def recipe_of(content, tmp_path, *lines):
    return read_recipe(write_recipe(tmp_path / "recipe.yaml", content), [*LINES, *lines])


def trained(folder):
    """The indices that a run's adapter file holds, by layer."""
    end = ".paca_indices"
    state = load_file(folder / "adapter" / "adapter_model.safetensors")
    found = {key.removeprefix("base_model.model."): value for key, value in state.items() if key.endswith(end)}
    return {key.removesuffix(end): value.tolist() for key, value in found.items()}


@pytest.fixture(scope="module")
def strategies():
    return ["random", "weight", "gradient", "activation"]


def test_every_strategy_chooses_what_a_run_of_its_own_would_train(content, tmp_path, strategies):
    done = select(recipe_of(content, tmp_path), strategies, tmp_path / "there")
    for strategy in strategies:
        finetune(recipe_of(content, tmp_path, f"method.selection={strategy}"), overwrite=True)
        assert json.loads(done.files[strategy].read_text()) == trained(tmp_path / "run"), strategy
    chosen = [json.dumps(json.loads(done.files[strategy].read_text())) for strategy in strategies]
    assert len(set(chosen)) == len(strategies)


def test_a_run_takes_the_file(content, tmp_path):
    done = select(recipe_of(content, tmp_path, "method.selection=weight"), [], tmp_path / "there")
    assert list(done.files) == ["weight"]
    file = done.files["weight"]
    finetune(recipe_of(content, tmp_path, "method.selection=indices", f"method.selection_indices={file}"))
    assert trained(tmp_path / "run") == json.loads(file.read_text())
    assert trained(tmp_path / "run") == {name: indices.tolist() for name, indices in done.chosen["weight"].items()}


def test_given_indices_are_drawn_beside_a_strategy(content, tmp_path):
    given = {"q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj": [0, 1, 2, 3]}
    content["method"].update(selection="indices", selection_indices=given)
    done = select(recipe_of(content, tmp_path), ["indices", "weight"], tmp_path / "there")
    assert {tuple(indices.tolist()) for indices in done.chosen["indices"].values()} == {(0, 1, 2, 3)}
    assert set(done.chosen["weight"]) == set(done.chosen["indices"])


def test_the_picture_is_one_and_grows_with_the_strategies(content, tmp_path):
    one = select(recipe_of(content, tmp_path), [], tmp_path / "one").picture
    two = select(recipe_of(content, tmp_path), ["random", "weight"], tmp_path / "two").picture
    first, second = (Image.open(path) for path in (one, two))
    assert first.format == second.format == "PNG"
    assert second.width > first.width
    assert len(np.unique(np.asarray(second).reshape(-1, 4), axis=0)) > 20


def test_an_earlier_selection_is_kept_unless_told_otherwise(content, tmp_path):
    recipe = recipe_of(content, tmp_path)
    folder = tmp_path / "there"
    before = select(recipe, ["random"], folder).files["random"].read_bytes()
    with pytest.raises(PacaError, match=r"earlier selection \(.*random\.json, .*selection\.png\); pass --overwrite"):
        select(recipe, ["random"], folder)
    assert select(recipe, ["random"], folder, overwrite=True).files["random"].read_bytes() == before


@pytest.mark.parametrize(
    ("lines", "strategies", "message"),
    [
        ([], ["wieght"], r"selection='wieght' is unknown; did you mean 'weight'\?"),
        (["method={name: lora, r: 4}"], [], r"method is 'lora', which selects no connections; add method.name=paca"),
        ([], ["indices"], r"needs the indices: pass selection_indices="),
    ],
)
def test_what_cannot_be_selected_is_refused(content, tmp_path, lines, strategies, message):
    lines = lines or LINES
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), lines)
    with pytest.raises(PacaError, match=message):
        select(recipe, strategies, tmp_path / "there")
    assert not (tmp_path / "there" / "selection.png").exists()


def test_layers_of_one_name_and_size_share_a_heat_map():
    sizes = {"a.0.q": 8, "a.0.out": 8, "a.1.q": 8, "a.1.out": 16}
    assert kinds_of_layers(sizes) == {
        "q (8 inputs)": ["a.0.q", "a.1.q"],
        "out (8 inputs)": ["a.0.out"],
        "out (16 inputs)": ["a.1.out"],
    }


def test_cells_count_connections_and_strategies():
    first = {"a": torch.tensor([0, 1, 5]), "b": torch.tensor([2])}
    second = {"a": torch.tensor([1, 4]), "b": torch.tensor([3])}
    assert counts(first, ["a", "b"], 6).tolist() == [[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]]
    assert votes({"x": first, "y": second}, ["a", "b"], 6).tolist() == [[1, 2, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]]
    wide = {"a": torch.tensor([0, 2, 575])}
    assert counts(wide, ["a"], 576).shape == (1, 192)
    assert counts(wide, ["a"], 576)[0, [0, 191]].tolist() == [2, 1]
    assert votes({"x": wide, "y": wide}, ["a"], 576)[0, [0, 1, 191]].tolist() == [2, 0, 2]
    assert counts(wide, ["a"], 577).shape == votes({"x": wide}, ["a"], 577).shape == (1, 145)


def test_a_strategy_chooses_what_a_run_on_images_would_train(image_content, tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", image_content), LINES_OF_IMAGES)
    done = select(recipe, ["random", "gradient"], tmp_path / "there")
    finetune(recipe)
    state = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    trained = {key: value.tolist() for key, value in state.items() if key.endswith("paca_indices")}
    chosen = json.loads(done.files["gradient"].read_text())
    assert {f"base_model.model.{name}.paca_indices": indices for name, indices in chosen.items()} == trained
    assert chosen != json.loads(done.files["random"].read_text())
