"""FSDP2 with convolutions, experts and quantized layers, the adapter that it saves, and what is refused.

All of it is done in one launch of two ranks, whose answers the tests share: a launch costs more than the work.
"""

import warnings

import bitsandbytes
import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import (
    PACA,
    adam,
    batch,
    largest_difference,
    make_base,
    make_model,
    refusal,
    train,
    trained,
    training_tolerance,
    updates,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import MixtralConfig, MixtralForCausalLM

from paca import PacaConfig, full_adapter_state_dict
from paca.tuner.adapter_file import read_fingerprints

WIDEST = 128  # features of the quantized model
PIXELS = 4 * 8 * 8  # of a batch of pictures


def shard(model):
    for block in model.get_base_model().model.layers:
        fully_shard(block)
    return fully_shard(model)


class Pictures(nn.Module):
    """A convolution, a grouped and a depthwise one, and a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 4, 1),
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.layers(x)).mean((2, 3)))


def trained_pictures(rank, ranks, divide):
    model = get_peft_model(Pictures(), PacaConfig(r=2, random_seed=0, target_modules=r".*(layers\.\d|head)"))
    if divide:
        for layer in model.get_base_model().layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = adam(trained(model))
    for step in range(10):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(x.chunk(ranks)[rank]), (torch.arange(4) % 5).chunk(ranks)[rank]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return updates(model)


def quantized_base():
    """In NF4, stored as float32 numbers, which FSDP2 can divide."""
    model = make_base(hidden_size=64, intermediate_size=WIDEST)
    for name, layer in [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]:
        if name != "lm_head":
            options = {"quant_type": "nf4", "quant_storage": torch.float32}
            packed = bitsandbytes.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, **options
            )
            packed.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, **options)
            model.set_submodule(name, packed.to("cpu"))
    return model


def quantized_model():
    return get_peft_model(quantized_base(), PacaConfig(**PACA))


def trained_quantized(rank, ranks, folder=None):
    """Trained, its outputs with and without the adapter, and what is refused."""
    model = quantized_model()
    model = shard(model) if ranks > 1 else model
    train(model, rank, ranks)
    found = updates(model)
    with torch.no_grad():
        found["outputs"] = model(input_ids=batch(99)).logits
        with model.disable_adapter():
            found["disabled"] = model(input_ids=batch(99)).logits
    if folder is not None:
        state = full_adapter_state_dict(model)
        model.save_pretrained(folder, state_dict=state, is_main_process=rank == 0)
    return found, refusal(model.merge_adapter) if ranks > 1 else None


def cast_refused():
    model = quantized_model()
    for block in model.get_base_model().model.layers:
        fully_shard(block, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    return refusal(lambda: model(input_ids=batch(0)))


def experts_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = get_peft_model(model, PacaConfig(r=2, random_seed=0, target_modules=[], target_parameters=names))
    return refusal(lambda: shard(model)(input_ids=torch.ones(1, 4, dtype=torch.long)))


def divided_first_refused():
    model = make_base()
    fully_shard(model)
    return refusal(lambda: get_peft_model(model, PacaConfig(**PACA)))


def saved(rank, folder):
    model = shard(make_model())
    train(model, rank, 2, steps=2)
    state = full_adapter_state_dict(model)
    model.save_pretrained(folder, state_dict=state, is_main_process=rank == 0)
    return updates(model), len(state)


def all_kinds(rank, folder):
    return {
        "saved": saved(rank, folder),
        "pictures": trained_pictures(rank, 2, True),
        "experts": experts_refused(),
        "divided": divided_first_refused(),
        "quantized": trained_quantized(rank, 2, f"{folder}/quantized"),
        "cast": cast_refused(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapter")


@pytest.fixture(scope="module")
def found(folder):
    return on_ranks(all_kinds, str(folder))


def test_convolutions(found):
    assert largest_difference(found[0]["pictures"], trained_pictures(0, 1, False)) < training_tolerance(widest=PIXELS)


def test_four_bit_weights_that_are_divided(found, folder):
    alone, _ = trained_quantized(0, 1)
    assert float((alone["outputs"] - alone["disabled"]).abs().max()) > 1e-2
    for answers in found:
        assert largest_difference(answers["quantized"][0], alone) < training_tolerance(widest=WIDEST)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that of other pretrained weights
        loaded = PeftModel.from_pretrained(quantized_base(), folder / "quantized", is_trainable=True)
    with torch.no_grad():
        assert float((loaded(input_ids=batch(99)).logits - alone["outputs"]).abs().max()) < 1e-5


def test_what_divided_four_bit_weights_cannot_do(found):
    for answers in found:
        assert "Cannot merge into a 4-bit weight that FSDP2 has divided" in answers["quantized"][1]
        assert "Save the adapter (paca.full_adapter_state_dict)" in answers["quantized"][1]
        assert "stored as torch.float32, to torch.bfloat16: its bytes are lost" in answers["cast"]
        assert "bnb_4bit_quant_storage equal to the param_dtype" in answers["cast"]


def test_experts_are_refused(found):
    for answers in found:
        assert "was replaced after it was adapted (by offloading or sharding)" in answers["experts"]


def test_a_model_that_was_divided_first_is_refused(found):
    for answers in found:
        assert "is divided over ranks already" in answers["divided"]
        assert "Call get_peft_model first and fully_shard after it." in answers["divided"]


def test_the_adapter_is_saved_whole(found, folder):
    (expected, entries), (_, others) = (answers["saved"] for answers in found)
    assert (entries, others) == (2 * 14, 0)
    assert len(read_fingerprints(str(folder / "adapter_model.safetensors"))) == 14
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that of other pretrained weights
        loaded = PeftModel.from_pretrained(make_base(), folder, is_trainable=True)
    assert largest_difference(updates(loaded), expected) == 0
