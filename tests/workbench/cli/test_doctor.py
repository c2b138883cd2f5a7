"""The verb: what it prints, what it returns, and that it leaves nothing behind."""

import pytest
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.cli.main import main


@pytest.fixture
def recipe(tmp_path):
    content = recipe_content(
        save_model(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "new" / "run"
    )
    return str(write_recipe(tmp_path / "recipe.yaml", content))


def test_a_good_recipe(recipe, tmp_path, capsys):
    assert main(["doctor", recipe]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("     ok  ", "warning  ")) for line in lines)
    assert "     ok  a gradient reaches all 14 adapted layers" in lines
    assert not (tmp_path / "new").exists()


def test_a_wasted_run(recipe, capsys):
    assert main(["doctor", recipe, "training.learning_rate=1e38"]) == 1
    assert "PROBLEM  The loss is not finite" in capsys.readouterr().out


def test_finetune_refuses_it_unless_told_otherwise(recipe, tmp_path, capsys):
    assert main(["finetune", recipe, "training.learning_rate=1e38"]) == 2
    assert "paca finetune: This run would be wasted: The loss is not finite" in capsys.readouterr().err
    assert main(["finetune", recipe, "training.max_steps=1", "--overwrite", "--no-doctor"]) == 0
    assert (tmp_path / "new" / "run" / "metrics.json").exists()
