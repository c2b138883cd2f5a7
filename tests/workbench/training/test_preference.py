"""Whole preference runs of a tiny model: DPO and KTO, from a base and from a trained adapter."""

import json
import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.workbench.tiny import run, same, write_jsonl, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from paca import PacaError
from paca.profiling.tracker import track
from paca.workbench.cli.main import main
from paca.workbench.recipe.preference_arguments import DPO_LOSSES, KTO_LOSSES
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.held_out_preferences import Preferences, as_reference
from paca.workbench.training.preference import closing_lines
from paca.workbench.training.run import finetune, trainer_of


def pair(number):
    return {
        "prompt": [{"role": "user", "content": f"Which one, {number}?"}],
        "chosen": [{"role": "assistant", "content": f"The cat {number}"}],
        "rejected": [{"role": "assistant", "content": f"A dog, {number}, or some other one"}],
    }


PAIRS = [pair(number) for number in range(20)]


@pytest.fixture
def preferences(content, tmp_path):
    """A recipe for eight optimizer steps, whose base model's attention drops out when it is trained."""
    content["task"] = "preference"
    content["data"] = {"train": str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS)), "holdout_every": 5}
    content["training"].update(max_length=80, beta=0.5)
    return content


@pytest.fixture
def tuned(content, preferences, tmp_path):
    """The output folder of a run that trained an adapter on text, and a preference recipe that goes on from it."""
    text = {**content, "task": "text", "output_dir": str(tmp_path / "tuned")}
    text["data"] = {"train": str(tmp_path / "text.txt"), "holdout_every": 5, "eval_limit": 2}
    text["training"] = {key: value for key, value in content["training"].items() if key != "beta"}
    text["training"]["max_length"] = 16
    finetune(read_recipe(write_recipe(tmp_path / "text.yaml", text)), doctor=False)
    del preferences["method"]
    preferences["model"]["adapter"] = str(tmp_path / "tuned")
    return preferences


def weights(tmp_path, folder="run"):
    return load_file(tmp_path / folder / "adapter" / "adapter_model.safetensors")


def assert_improved(metrics):
    before, after = metrics["before"], metrics["after"]
    assert (before["accuracy"], before["margin"], before["kl"]) == (0.5, 0, 0), "the model is its reference"
    assert before["loss"] == pytest.approx(math.log(2))
    assert after["accuracy"] > 0.5
    assert after["margin"] > 0 < after["kl"]
    assert after["loss"] < before["loss"]


def test_a_run_from_a_base(preferences, tmp_path):
    metrics = run(preferences, tmp_path)
    assert metrics["loss_curve"][0][1] == pytest.approx(math.log(2), abs=1e-6)
    assert_improved(metrics)
    folder = tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "adapter", "before.json", "checkpoint-4", "checkpoint-6", "loss.png", "metrics.json", "recipe.yaml",
    ]  # fmt: skip
    assert [step for step, _ in metrics["margin_curve"]] == [1, 2, 3, 4, 5, 6]
    assert metrics["margin_curve"][0][1] == 0
    assert metrics["held_out"] == {"sequences": 4, "total": 4}
    assert "held-out preference accuracy 50.0% -> 100.0%" in closing_lines(metrics)[0]
    with pytest.raises(PacaError, match="holds a finished run"):
        run(preferences, tmp_path)


def test_the_measured_margin_is_that_of_the_saved_adapter(preferences, tmp_path):
    metrics = run(preferences, tmp_path)
    trainer, data = trainer_of(read_recipe(tmp_path / "recipe.yaml"))
    base = AutoModelForCausalLM.from_pretrained(preferences["model"]["name"])
    model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    margins, divergences = [], []
    for row in data.held_out:
        rewards = []
        for name in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([row["prompt_ids"] + row[name]])
            start = len(row["prompt_ids"]) - 1
            with torch.no_grad():
                ours = model(ids).logits.log_softmax(-1)[0, start:-1]
                with model.disable_adapter():
                    theirs = model(ids).logits.log_softmax(-1)[0, start:-1]
            said = torch.tensor(row[name])[:, None]
            rewards.append(0.5 * float((ours - theirs).gather(1, said).sum()))
            divergences += torch.nn.functional.kl_div(theirs, ours, reduction="none", log_target=True).sum(-1).tolist()
        margins.append(rewards[0] - rewards[1])
    assert metrics["after"]["margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert metrics["after"]["kl"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert trainer.args.beta == 0.5


def test_a_run_from_a_trained_adapter_compares_with_that(tuned, tmp_path):
    metrics = run(tuned, tmp_path)
    assert metrics["loss_curve"][0][1] == pytest.approx(math.log(2), abs=1e-6)
    assert_improved(metrics)
    before, after = weights(tmp_path, "tuned"), weights(tmp_path)
    assert not same(before, after)
    assert before.keys() == after.keys(), "the reference is not saved"
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith("paca_indices"))
    assert not list((tmp_path / "run").glob("*/ref"))
    assert metrics["recipe"]["method"]["r"] == 4
    assert run(tuned, tmp_path, resume=True)["after"] == metrics["after"], "the recipe is the same when read again"


@pytest.mark.parametrize("source", ["preferences", "tuned"])
def test_the_reference_is_the_model_before_training_to_the_bit(source, request, tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", request.getfixturevalue(source)))
    trainer, _ = trainer_of(recipe)
    batch = next(iter(trainer.get_eval_dataloader()))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)

    def said():
        with torch.no_grad():
            return trainer.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs

    trained = {name for name, tensor in trainer.model.named_parameters() if tensor.requires_grad}
    assert not any(".ref" in name for name in trained)
    before = said()
    trainer.train()
    assert not torch.allclose(said(), before, atol=1e-3)
    with as_reference(trainer.model):
        assert torch.equal(said(), before)
    assert not torch.allclose(said(), before, atol=1e-3)
    assert {name for name, tensor in trainer.model.named_parameters() if tensor.requires_grad} == trained


@pytest.mark.parametrize("loss", [*DPO_LOSSES, *KTO_LOSSES])
def test_every_loss_learns_what_is_preferred(loss, preferences, tmp_path):
    preferences["training"].update(loss_type=loss, label_smoothing=1e-3 if loss in ("exo_pair", "robust") else 0)
    if loss in KTO_LOSSES:
        del preferences["training"]["label_smoothing"]
    metrics = run(preferences, tmp_path, doctor=False)
    if loss in ("sft", "discopop"):  # the first sees the preferred answer alone, the second falls away from equal ones
        assert metrics["loss_curve"][-1][1] < metrics["loss_curve"][0][1]
    else:
        assert_improved(metrics)


def test_losses_are_summed_with_their_weights(preferences, tmp_path):
    preferences["training"].update(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    first = run(preferences, tmp_path, doctor=False)["loss_curve"][0][1]
    preferences["training"].update(loss_weights=[1.0, 0.0])
    assert run(preferences, tmp_path, doctor=False, overwrite=True)["loss_curve"][0][1] == pytest.approx(math.log(2))
    assert first > math.log(2) + 1


def test_kto_takes_labels(preferences, tmp_path):
    rows = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in PAIRS
        for name in ("chosen", "rejected")
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(PacaError, match=r"Set training\.loss_type=kto"):
        run(preferences, tmp_path)
    metrics = run(preferences, tmp_path, "training.loss_type=kto", overwrite=True)
    assert metrics["loss_curve"][0][1] == pytest.approx(0.5, abs=1e-6)
    assert_improved(metrics)
    assert metrics["held_out"] == {"sequences": 8, "total": 8}


@pytest.mark.parametrize("source", ["preferences", "tuned"])
def test_a_resumed_run_ends_with_the_same_adapter(source, request, tmp_path):
    content = request.getfixturevalue(source)
    run(content, tmp_path)
    straight = weights(tmp_path)
    for name in ("metrics.json", "adapter", "checkpoint-6"):
        path = tmp_path / "run" / name
        path.rename(tmp_path / f"old-{name}")
    metrics = run(content, tmp_path, resume=True)
    assert same(weights(tmp_path), straight)
    assert_improved(metrics)


@pytest.mark.parametrize(("source", "adapters"), [("preferences", 1), ("tuned", 2)])
def test_there_is_no_second_copy_of_the_base_weights(source, adapters, request, tmp_path):
    content = request.getfixturevalue(source)
    trainer, _ = trainer_of(read_recipe(write_recipe(tmp_path / "recipe.yaml", content)))
    trainer.train()
    assert trainer.ref_model is None
    named = [*trainer.model.named_parameters(), *trainer.model.named_buffers()]
    own = {name: tensor for name, tensor in named if ".default" in name}
    assert own
    base = AutoModelForCausalLM.from_pretrained(content["model"]["name"])
    held, of_base, of_adapter = (
        sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
        for tensors in ([tensor for _, tensor in named], [*base.parameters(), *base.buffers()], own.values())
    )
    assert held == of_base + adapters * of_adapter


@pytest.mark.parametrize("source", ["preferences", "tuned"])
def test_a_step_holds_what_one_over_twice_as_many_texts_does(source, request, tmp_path):
    """The reference costs not one byte: the same weights compute it, and it keeps nothing for backward."""
    content = request.getfixturevalue(source)
    content["training"].update(per_device_train_batch_size=4, gradient_checkpointing=False)
    trainer, _ = trainer_of(read_recipe(write_recipe(tmp_path / "recipe.yaml", content)))
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)

    def supervised():
        model = trainer.model
        model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs.mean().backward()

    def preferred():
        trainer.compute_loss(trainer.model, batch).backward()

    peaks = {}
    for step in (supervised, preferred) * 2:
        trainer.model.zero_grad()
        with track([*trainer.model.parameters(), *batch.values()]) as tracker:
            step()
        peaks[step] = tracker.peak_bytes
    assert peaks[preferred] == pytest.approx(peaks[supervised], rel=0.01)


def test_paca_data_shows_both_answers(preferences, tmp_path, capsys):
    path = write_recipe(tmp_path / "recipe.yaml", preferences)
    assert main(["data", str(path), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "chosen 1 of 16, " in shown
    assert "assistant\n⟦The cat 1<|im_end|>⟧" in shown
    assert "assistant\n⟦A dog, 1, or some other one<|im_end|>⟧" in shown
    assert main(["data", str(path), "training.loss_type=kto", "--rows", "1"]) == 0
    assert "completion 1 of 32, label " in capsys.readouterr().out


def test_paca_plan_counts_two_answers_a_row(preferences, tmp_path, capsys):
    path = str(write_recipe(tmp_path / "recipe.yaml", preferences))
    for overrides, batch in (("training.loss_type=sigmoid", 4), ("training.loss_type=kto", 2)):
        content = read_recipe(tmp_path / "recipe.yaml", [overrides]).to_dict()
        write_recipe(tmp_path / "plan.yaml", content)
        assert main(["plan", str(tmp_path / "plan.yaml")]) == 0
        assert f"{batch} × 80 tokens" in capsys.readouterr().out
    assert main(["doctor", path]) == 0
    assert "teach an EOS token" in capsys.readouterr().out


def test_what_is_measured_of_answers_by_hand():
    found = Preferences(liked=[(1.0, -3.0), (0.0, -1.0)], disliked=[(0.0, -2.0), (0.0, -2.0)], kl=6.0, tokens=4)
    measured = found.to_dict()
    assert (measured["accuracy"], measured["likelihood_accuracy"], measured["margin"]) == (0.75, 0.5, 0.5)
    assert measured["kl"] == 1.5
    assert measured["loss"] == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)
    assert measured["accuracy_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 2))
    single = Preferences(liked=[(1.0, 0.0)], disliked=[(0.0, 0.0), (2.0, 0.0), (1.0, 0.0)], paired=False).to_dict()
    assert (single["accuracy"], single["margin"]) == (0.5, 0.0)


BAD = {
    "another base": (
        {"model.adapter": "other"},
        "was trained on 'org/other', and model.name is ",
    ),
    "no such adapter": ({"model.adapter": "missing"}, "there is no adapter; name a run's output folder"),
    "another method": (
        {"method": "{name: paca, r: 16}"},
        "r was 4, now 16; the adapter that model.adapter names brings its own method, so leave this section out",
    ),
    "a reference of its own": (
        {"training.ref_model": "tiny"},
        "training.ref_model = 'tiny': not to be set here; the reference is the model as it is before training",
    ),
    "a misspelt loss": ({"training.loss_type": "sigmiod"}, "did you mean 'sigmoid'?"),
    "a loss for pairs with one that takes labels": ({"training.loss_type": "[sigmoid, kto]"}, "and stand alone"),
    "weights for other losses": ({"training.loss_weights": "[1.0, 2.0]"}, "has 2 numbers for 1 losses"),
    "exo_pair without smoothing": ({"training.loss_type": "exo_pair"}, "exo_pair needs more than 0"),
    "kto one by one": (
        {"training.loss_type": "kto", "training.per_device_train_batch_size": "1"},
        "so it needs at least 2",
    ),
    "a format of text": ({"data.format": "alpaca"}, "data.format = 'alpaca': expected one of oasst"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_before_anything_is_loaded(name, tuned, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_model.safetensors").write_bytes(b"")
    config = {"peft_type": "PACA", "base_model_name_or_path": "org/other"}
    (other / "adapter_config.json").write_text(json.dumps(config))
    changes, said = BAD[name]
    values = {key: str(tmp_path / value) if key == "model.adapter" else value for key, value in changes.items()}
    path = write_recipe(tmp_path / "recipe.yaml", tuned)
    with pytest.raises(PacaError) as caught:
        read_recipe(path, [f"{key}={value}" for key, value in values.items()])
    assert said in str(caught.value)


def test_a_key_that_is_given_twice(tuned, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", tuned)
    path.write_text(path.read_text() + "\ntraining:\n  ref_model: a\n")
    with pytest.raises(PacaError, match="the key 'training' is given twice"):
        read_recipe(path)


def test_an_adapter_of_other_weights_under_the_same_name(tuned, tmp_path):
    """A base that was replaced by another: the columns' fingerprints tell, before anything is trained."""
    model = AutoModelForCausalLM.from_pretrained(tuned["model"]["name"])
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    elsewhere = tmp_path / "elsewhere" / tuned["model"]["name"].rpartition("/")[2]
    model.save_pretrained(elsewhere)
    AutoTokenizer.from_pretrained(tuned["model"]["name"]).save_pretrained(elsewhere)
    tuned["model"]["name"] = str(elsewhere)
    with pytest.raises(PacaError, match="was trained on other pretrained weights than this model's"):
        run(tuned, tmp_path)


def test_text_goes_on_from_an_adapter_as_well(tuned, tmp_path):
    tuned["task"] = "text"
    tuned["data"] = {"train": str(tmp_path / "text.txt"), "holdout_every": 5, "eval_limit": 4}
    del tuned["training"]["beta"]
    tuned["training"]["max_length"] = 16
    earlier = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    metrics = run(tuned, tmp_path)
    assert metrics["after"]["loss"] < metrics["before"]["loss"] < earlier["before"]["loss"]


def test_a_run_is_not_resumed_over_another_adapter(tuned, tmp_path):
    run(tuned, tmp_path)
    (tmp_path / "run" / "metrics.json").unlink()
    path = tmp_path / "tuned" / "adapter" / "adapter_config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(PacaError, match=r"the files of the adapter that model\.adapter names are as many"):
        run(tuned, tmp_path, resume=True)
