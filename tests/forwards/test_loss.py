"""The loss without logits: when it is taken, that it is the same, and what stands against it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.forwards.test_apply import IDS, assert_left_alone, quiet_lean, step, tiny

from paca.forwards import loss
from paca.profiling import track

pytestmark = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has no linear_cross_entropy")


@pytest.fixture
def models():
    model = tiny("llama")
    lean = copy.deepcopy(model)
    quiet_lean(lean)
    return model, lean


LABELS = IDS.masked_fill(torch.arange(12) % 3 == 0, -100)
CALLS = {
    "labels": {"labels": IDS},
    "ignored labels": {"labels": LABELS},
    "number of items": {"labels": LABELS, "num_items_in_batch": torch.tensor(5)},
    "shifted labels": {"labels": IDS, "shift_labels": LABELS},
}


@pytest.mark.parametrize("name", CALLS)
def test_losses_are_the_same_and_there_are_no_logits(models, name):
    plain, lean = (model(IDS, **CALLS[name]) for model in models)
    assert lean.logits is None
    torch.testing.assert_close(lean.loss, plain.loss)
    assert not torch.equal(plain.loss, models[0](IDS, labels=IDS.roll(1)).loss)


@pytest.mark.parametrize("rows", [1, 7, 24, 512])
def test_tiles_of_any_size_give_the_same_gradients(models, rows, monkeypatch):
    monkeypatch.setattr(loss, "ROWS", rows)
    for mine, theirs in zip(step(models[1]), step(models[0]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_trained_head_gets_its_gradient(models):
    for model in models:
        model.lm_head.requires_grad_(True)
        model(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(models[1].lm_head.weight.grad, models[0].lm_head.weight.grad)


@pytest.mark.parametrize(
    "options",
    [{}, {"labels": IDS, "ignore_index": 5}, {"labels": IDS, "return_dict": True}],
    ids=["no labels", "ignore_index", "return_dict"],
)
def test_calls_that_ask_for_logits_get_them(models, options):
    assert models[1](IDS, **options).logits is not None


def test_16_bits_keep_the_loss_that_is_not_rounded(models):
    with torch.autocast("cpu", torch.bfloat16):
        assert models[1](IDS, labels=IDS).loss.dtype == torch.float32
    assert models[1].to(torch.bfloat16)(IDS, labels=IDS).loss.dtype == torch.float32


def test_the_logits_are_never_there_as_a_whole(models):
    wide = tiny("llama", vocab_size=4096)
    logits = IDS.numel() * 4096 * 4
    with track() as plain:
        step(wide)
    quiet_lean(wide)
    with track() as lean:
        step(wide)
    assert plain.peak_bytes > 2 * logits
    assert lean.peak_bytes < logits


def other_loss(model):
    model.loss_function = lambda logits, labels, **options: logits.square().mean()


def hooked_head(model):
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def other_head(model):
    model.lm_head = torch.nn.Sequential(model.lm_head)
    model.get_output_embeddings = lambda: model.lm_head


REFUSED = {
    other_loss: "its loss is not transformers' own",
    hooked_head: "hooks watch its output head",
    other_head: "its output head is Sequential",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_losses_that_are_not_as_known_are_left_alone_and_named(change):
    assert_left_alone(change, "LlamaForCausalLM", REFUSED[change])


def test_a_head_that_something_watches_later_is_called(models):
    hooked_head(models[1])
    assert models[1](IDS, labels=IDS).logits is not None


def test_a_torch_without_the_operator_is_named(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy")
    assert "has no linear_cross_entropy" in quiet_lean(tiny("llama")).left["LlamaForCausalLM"]
