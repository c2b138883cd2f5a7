"""`paca select` as it is typed."""

import json
import shlex

import pytest
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.cli.main import main


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
    told = lines[4].removeprefix("train these: paca ")
    assert main(shlex.split(told)) == 0
    assert json.loads((folder / "weight.json").read_text())
    assert not (tmp_path / "run-selection" / "recipe.yaml").exists()


def test_a_mistake_is_a_message_and_status_2(recipe, capsys):
    assert main(["select", recipe, "--strategies", "wieght"]) == 2
    assert "did you mean 'weight'?" in capsys.readouterr().err
