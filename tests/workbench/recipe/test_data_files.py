"""A recipe's files of data are part of its list of problems."""

import json

import pytest
from tests.workbench.tiny import write_recipe
from tests.workbench.vision.tiny import recipe_content

from paca.workbench.cli.main import main
from paca.workbench.recipe.data_files import file_problems
from paca.workbench.recipe.recipe import DataSection, ImagesSection

pytestmark = pytest.mark.road("problem-list")
VERBS = ("finetune", "doctor", "data", "compare", "select")


@pytest.fixture
def bad(content, tmp_path):
    """A recipe that has something wrong in each section, and in each file."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a"}) + "\n{nonsense\n")
    content["data"] = {"train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "missing.txt")], "eval": "none.jsonl"}
    content["model"]["name"] = str(tmp_path / "modle")
    (tmp_path / "model").mkdir()
    content["method"]["rank"] = 4
    content["training"]["lr"] = 1e-3
    return content


PROBLEMS = (
    "method.rank = 4: there is no such key; did you mean 'r'?",
    "training.lr = 0.001: there is no such key; did you mean 'learning_rate'?",
    "model.name: There is no folder ",
    "rows.jsonl:2: not valid JSON",
    "There is no data file '{folder}/missing.txt'",
    "data.eval: There is no data file 'none.jsonl'",
)


@pytest.mark.parametrize("verb", VERBS)
def test_all_problems_at_once(bad, tmp_path, capsys, verb):
    assert main([verb, str(write_recipe(tmp_path / "recipe.yaml", bad))]) == 2
    shown = capsys.readouterr().err
    assert "has 6 problems" in shown
    for problem in PROBLEMS:
        assert problem.format(folder=tmp_path) in shown
    assert f"did you mean '{tmp_path / 'model'}'" in shown


def test_all_files_at_once_where_the_recipe_is_right(bad, tiny_model, tmp_path, capsys):
    del bad["method"]["rank"], bad["training"]["lr"]
    bad["model"]["name"] = str(tiny_model)
    for verb in ("finetune", "doctor", "data", "select"):
        assert main([verb, str(write_recipe(tmp_path / "recipe.yaml", bad))]) == 2
        shown = capsys.readouterr().err
        assert "The data of this recipe has 3 problems:" in shown
        for problem in PROBLEMS[3:]:
            assert problem.format(folder=tmp_path) in shown
    assert not (tmp_path / "run").exists()


def test_preferences(content, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    content["data"] = {"train": [str(tmp_path / name) for name in ("pairs.jsonl", "good.jsonl")], "eval": "none.jsonl"}
    content["training"] = {"lr": 1e-3}
    assert main(["finetune", str(write_recipe(tmp_path / "recipe.yaml", {**content, "task": "preference"}))]) == 2
    shown = capsys.readouterr().err
    assert "has 3 problems" in shown
    assert "pairs.jsonl:1: " in shown
    assert "good.jsonl" not in shown


def test_images(tiny_classifier, tmp_path, capsys):
    content = recipe_content(tiny_classifier, tmp_path / "missing.npz", tmp_path / "run")
    content["data"]["eval"] = str(tmp_path / "photos" / "test")
    content["training"]["lr"] = 1e-3
    assert main(["finetune", str(write_recipe(tmp_path / "recipe.yaml", content))]) == 2
    shown = capsys.readouterr().err
    assert "has 3 problems" in shown
    assert f"data.train: There is no data file '{tmp_path / 'missing.npz'}'" in shown
    assert "data.eval: There is no data file or folder" in shown


def test_planning_needs_no_data(bad, tmp_path, capsys):
    assert main(["plan", str(write_recipe(tmp_path / "recipe.yaml", bad))]) == 2
    assert "has 3 problems" in capsys.readouterr().err


def test_the_hub_is_not_asked():
    data = DataSection(train=["owner/name", "squad", "python-reference"], eval="owner/other")
    assert file_problems("text", data, ImagesSection()) == []
