"""The list of recipes, and one of them."""

from paca.workbench.cli.main import main
from paca.workbench.cli.recipes import first_sentence
from paca.workbench.recipe.recipe import read_recipe, shipped_recipes


def test_every_recipe_has_a_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == sorted(shipped_recipes())
    assert all(len(line.split(None, 1)[1]) > 20 for line in lines)


def test_a_shown_recipe_can_be_run(capsys, tmp_path):
    assert main(["recipes", "show", "smollm2-python-reference"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert read_recipe(tmp_path / "mine.yaml") == read_recipe(shipped_recipes()["smollm2-python-reference"])


def test_a_name_is_needed_and_known(capsys):
    assert main(["recipes", "show"]) == 2
    assert "paca recipes show NAME, one of " in capsys.readouterr().err
    assert main(["recipes", "show", "smollm2-python"]) == 2
    assert "There is no recipe file 'smollm2-python'" in capsys.readouterr().err


def test_first_sentences():
    assert first_sentence("# One thing\n# in two lines. Then more.\n\nmodel:\n") == "One thing in two lines"
    assert first_sentence("model: x\n") == ""
    assert first_sentence("# " + "long " * 40).endswith(" …")
