"""`paca select` as it is typed."""

import json
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.base.yaml import parse
from paca.workbench.cli.main import main
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.selecting import training_settings


@pytest.fixture
def recipe(tmp_path):
    content = recipe_content(save_model(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "run")
    return str(write_recipe(tmp_path / "recipe.yaml", content))


def test_it_says_what_lies_where_and_how_to_train_it(recipe, tmp_path, capsys):
    words = ["method.run_length=2", "training.max_steps=1", "--strategies", "random", "weight"]
    assert main(["select", recipe, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "run-selection"
    assert lines[0] == f"random: {folder / 'random.json'} (56 connections in 14 layers)"
    assert lines[2].startswith("random and weight: ")
    assert lines[2].endswith("in common, 11.6% by chance")
    assert lines[3] == f"heat map: {folder / 'selection.png'}"
    assert json.loads((folder / "weight.json").read_text())
    assert_trains(lines[4], folder / "weight.json", 1e-2)
    assert not (tmp_path / "run-selection" / "recipe.yaml").exists()


def assert_trains(line, file, rate):
    """The command that a selection ends with trains the connections of a file, at a learning rate."""
    told = shlex.split(line.removeprefix("train these: paca "))
    assert main([*told, "training.max_steps=1", "--overwrite"]) == 0
    output = read_recipe(Path(told[1]), [word for word in told[2:] if word.startswith("output_dir=")]).output_dir
    run = parse((Path(output) / "recipe.yaml").read_text())
    assert run["training"]["learning_rate"] == pytest.approx(rate)
    adapter = load_file(Path(output) / "adapter" / "adapter_model.safetensors")
    trained = {key.removeprefix("base_model.model.").removesuffix(".paca_indices"): value.tolist()
               for key, value in adapter.items() if key.endswith("paca_indices")}  # fmt: skip
    assert trained == json.loads(file.read_text())


@pytest.mark.road("select-command")
@pytest.mark.parametrize(
    "overrides", [["method.aligned=true", "output_dir=a folder"], ["method.reselect_every=2", "training.save_steps=4"]]
)
def test_the_last_line_trains_what_was_chosen_last(recipe, tmp_path, monkeypatch, capsys, overrides):
    monkeypatch.chdir(tmp_path)
    words = [recipe, "method.selection_batches=2", "method.selection=gradient", *overrides]
    assert main(["select", *words, "--output", "chosen here"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.count("method.selection=") == 1
    assert_trains(line, tmp_path / "chosen here" / "gradient.json", 1e-2)


@pytest.mark.road("select-command")
@pytest.mark.parametrize(
    ("own", "strategy", "rate"),
    [
        ("random", "random", "0.003"),
        ("random", "weight_smallest", "0.003"),
        ("random", "gradient", "0.0003"),
        ("weight", "activation", "0.0003"),
        ("weight", "weight_activation", "0.0003"),
        ("gradient", "activation", "0.003"),
        ("gradient", "random", "0.03"),
        (None, "random", "0.005"),
        (None, "gradient", "0.0005"),
    ],
)
def test_a_rate_that_suits_the_strategy(content, tmp_path, own, strategy, rate):
    del content["training"]["learning_rate"]
    overrides = [f"method.selection={own}", "training.learning_rate=3e-3"] if own else []
    made = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), overrides)
    assert training_settings(made, strategy, tmp_path)["training.learning_rate"] == rate


def test_a_mistake_is_a_message_and_status_2(recipe, capsys):
    assert main(["select", recipe, "--strategies", "wieght"]) == 2
    assert "did you mean 'weight'?" in capsys.readouterr().err
