"""Whole runs on images: what they write, what each key changes, and that an interruption leaves no trace."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file
from tests.workbench.tiny import run, same
from transformers import AutoModelForImageClassification, TrainerCallback

from paca import PacaError
from paca.workbench.cli.main import main
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training import images as runs
from paca.workbench.vision.adapters import load_adapted_classifier
from paca.workbench.vision.data import read_data
from paca.workbench.vision.pixels import PixelDataset, PixelFormat, make_transform
from paca.workbench.vision.report import closing_lines


@pytest.fixture
def content(image_content):
    return image_content


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_leaves_everything_that_was_promised(content, tmp_path):
    metrics = run(content, tmp_path)
    folder = tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    for name in ("loss.png", "misclassified.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert metrics["after"]["accuracy"] > metrics["before"]["accuracy"]
    assert list(metrics["after"]["per_class"]) == ["dark", "bright", "red"]
    mean = sum(metrics["after"]["per_class"].values()) / 3
    assert metrics["after"]["accuracy"] == pytest.approx(mean), "the classes are balanced"
    assert metrics["held_out"] == {"images": 30, "total": 30}
    assert metrics["images"] == 8 * 8
    assert metrics["image_size"] == 16
    assert metrics["images_per_second"] > 0
    # Rank 4 of the six layers of two blocks, out_features 4 · 32 + 64 + 32, and the head.
    assert metrics["trained_parameters"] == 2 * 4 * (4 * 32 + 64 + 32) + 32 * 3 + 3
    assert metrics["peak_bytes"] > sum(tensor.nbytes for tensor in adapter(folder).values())


def test_the_measured_accuracy_is_that_of_the_saved_adapter_and_of_the_merged_model(content, tmp_path):
    metrics = run(content, tmp_path)
    assert main(shlex.split(closing_lines(metrics)[-1].removeprefix("merge: paca "))) == 0
    adapted = load_adapted_classifier(tmp_path / "run" / "adapter").eval()
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "merged")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    rows = PixelDataset(read_data(recipe.data, recipe.images).held_out, make_transform(PixelFormat(16)))
    pixels = torch.stack([rows[position]["pixel_values"] for position in range(len(rows))])
    labels = torch.tensor([rows[position]["labels"] for position in range(len(rows))])
    with torch.no_grad():
        logits = adapted(pixel_values=pixels).logits
        torch.testing.assert_close(merged(pixels).logits, logits)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(pixel_values=pixels).logits, logits)
    assert metrics["after"]["accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    assert merged.config.id2label == {0: "dark", 1: "bright", 2: "red"}


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_same_adapter(content, tmp_path, monkeypatch):
    whole = run(content, tmp_path)
    make_trainer = runs.make_trainer

    def interrupted(*args):
        trainer = make_trainer(*args)
        trainer.add_callback(Stop())
        return trainer

    elsewhere = f"output_dir={tmp_path / 'interrupted'}"
    monkeypatch.setattr(runs, "make_trainer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(content, tmp_path, elsewhere)
    monkeypatch.setattr(runs, "make_trainer", make_trainer)
    assert not (tmp_path / "interrupted" / "metrics.json").exists()
    with pytest.raises(PacaError, match="holds a run that is not finished"):
        run(content, tmp_path, elsewhere)
    resumed = run(content, tmp_path, elsewhere, resume=True)
    assert same(adapter(tmp_path / "run"), adapter(tmp_path / "interrupted"))
    assert resumed["after"] == whole["after"]
    assert resumed["before"] == whole["before"]
    other = run(content, tmp_path, f"output_dir={tmp_path / 'other'}", "seed=4")
    assert other["loss_curve"] != whole["loss_curve"]


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_how_images_are_varied_changes_the_run(content, tmp_path, augment):
    runs = [
        run(content, tmp_path, f"images.augment={kind}", f"output_dir={tmp_path / kind}") for kind in ("crop", augment)
    ]
    assert runs[0]["loss_curve"] != runs[1]["loss_curve"]


def test_no_held_out_image_is_left_out(content, tmp_path):
    metrics = run(content, tmp_path, "training.dataloader_drop_last=true", "training.per_device_eval_batch_size=100")
    assert all(value is not None for value in metrics["after"]["per_class"].values())


def test_any_method_of_peft(content, tmp_path):
    content["method"] = {"name": "lora", "r": 2, "target_modules": "all-linear"}
    metrics = run(content, tmp_path)
    assert metrics["trained_parameters"] == 2 * 2 * (4 * 64 + 2 * 96) + 32 * 3 + 3


def test_lean_forwards_are_put_in(content, tmp_path, capsys):
    metrics = run(content, tmp_path, "training.lean=true", "training.max_steps=1")
    assert "note: lean forwards for" in capsys.readouterr().err
    assert metrics["recipe"]["training"]["lean"] is True


def test_a_method_that_does_not_fit_the_model(content, tmp_path):
    content["method"] = {"name": "lora", "target_modules": ["layernorm_before"]}
    with pytest.raises(PacaError, match=r"'lora' can't be trained on .* like this: Target module LayerNorm"):
        run(content, tmp_path)


def test_closing_lines(content, tmp_path):
    metrics = run(content, tmp_path)
    improved, hardest, lies, _ = closing_lines(metrics)
    assert improved.startswith("improved: held-out accuracy ")
    assert improved.endswith("(30 of 30 held-out images, 3 classes)")
    assert hardest.startswith("hardest classes: ")
    assert lies.startswith(f"adapter: {tmp_path / 'run' / 'adapter'} (1,891 trained parameters, ")
    same = {**metrics, "before": {**metrics["before"], "accuracy": metrics["after"]["accuracy"]}}
    assert closing_lines(same)[0].startswith("unchanged: held-out accuracy ")
    skipping = closing_lines({**metrics, "skipped": ["a.png"]})
    assert skipping[1] == "skipped: 1 image files that cannot be read: a.png"


def test_a_recipe_for_images_is_checked(content, tmp_path):
    content["images"] = {"augment": "flop", "batch_norm": "off", "size": 0, "most_unreadable": 2, "weight": "random"}
    with pytest.raises(PacaError, match=r"images\.weight = 'random': there is no such key; did you mean 'weights'"):
        run(content, tmp_path)
    del content["images"]["weight"]
    with pytest.raises(PacaError) as raised:
        run(content, tmp_path, "training.max_length=3", "training.label_names=[x]", "model.quantization=nf4")
    text = str(raised.value)
    for part in (
        "has 7 problems",
        "images.augment = 'flop': expected one of none, flip, crop",
        "images.batch_norm = 'off': expected one of frozen, train",
        "images.size = 0: expected at least 1",
        "images.most_unreadable = 2: expected a share between 0 and 1",
        "training.max_length = 3: there is no such key",
        "training.label_names = ['x']: not to be set here",
        "image classifiers are not quantized",
    ):
        assert part in text


def test_the_task_is_known_and_images_go_with_one(content, tmp_path):
    with pytest.raises(PacaError, match=r"task = 'image': expected one of text, preference, image-classification"):
        run(content, tmp_path, "task=image")
    with pytest.raises(PacaError, match=r"images: a recipe whose task is text has none; add task: image-class"):
        run(content, tmp_path, "task=text")
