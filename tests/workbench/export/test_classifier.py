"""Exports of an image classifier's adapter: a merged model that agrees, or nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from paca import PacaError
from paca.workbench.cli.main import main
from paca.workbench.export import verified
from paca.workbench.export.verified import export
from paca.workbench.vision.adapters import load_adapted_classifier

RECIPE = "image_content"


def test_the_merged_model_answers_as_the_adapted_one(run, tmp_path):
    folder = run()
    done = export(str(folder), "merged")
    assert [check["name"] for check in done["checks"]] == ["logits", "classes", "parameters"]
    assert all(check["passed"] for check in done["checks"])
    assert done["effect_of_the_adapter"] > 1e-3
    certificate = json.loads((folder / "merged" / "certificate.json").read_text())
    assert certificate["adapter"] == str(folder / "adapter")
    merged = AutoModelForImageClassification.from_pretrained(folder / "merged").eval()
    assert list(merged.config.id2label.values()) == ["dark", "bright", "red"]
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = load_adapted_classifier(folder / "adapter").eval()(images).logits
        torch.testing.assert_close(merged(images).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", ["lora", "peft"])
def test_other_formats_are_refused(run, capsys, to):
    assert main(["export", str(run()), "--to", to]) == 2
    assert "is the adapter of an image classifier" in capsys.readouterr().err


def test_a_base_of_random_weights_cannot_be_merged_into(run, image_content):
    image_content["images"] |= {"weights": "random"}
    with pytest.raises(PacaError, match="trained on random weights"):
        export(str(run()), "merged")


def test_what_answers_otherwise_is_not_left(run, monkeypatch):
    folder = run()
    right = verified.CLASSIFIER_FORMATS["merged"]

    def write_and_spoil(exported, place):
        right.write(exported, place)
        (file,) = place.glob("*.safetensors")
        tensors = load_file(file)
        tensors["classifier.weight"][0, 0] += 1.0
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setitem(verified.CLASSIFIER_FORMATS, "merged", verified.Format(write_and_spoil, right.check))
    with pytest.raises(PacaError, match=r"does not agree with the adapted model.*\n  - logits"):
        export(str(folder), "merged")
    assert not (folder / "merged").exists()
