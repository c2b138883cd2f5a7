"""Aligned layers keep one slice for all of them, with the same gradients."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.toys import layers
from transformers import LlamaConfig, LlamaForCausalLM

from paca import PacaConfig
from paca.method.columns.shared_gather import SharedGather
from paca.profiling import kept_for_backward


def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).double()


def adapted(plain, **options):
    base = {"r": 16, "target_modules": "all-linear", "random_seed": 0}
    return get_peft_model(copy.deepcopy(plain), PacaConfig(**{**base, **options}))


IDS = torch.arange(64)[None]


def bytes_of_slices(model, r):
    """Bytes of all different `X[..., I]` that a forward pass keeps for backward: nothing else here is so narrow."""
    slices = {}

    def count(tensor):
        if tensor.shape[-1:] == (r,):
            slices[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(IDS, labels=IDS).loss
    assert loss.requires_grad
    return sum(slices.values())


def test_a_block_keeps_four_slices_in_place_of_seven():
    plain, r = llama(), 12
    separate, aligned = (adapted(plain, r=r, aligned=flag) for flag in (False, True))
    kept = [kept_for_backward(lambda model=model: model(IDS, labels=IDS).loss) for model in (separate, aligned)]
    one_slice = 64 * r * 8
    assert bytes_of_slices(separate, r) == 7 * one_slice
    assert bytes_of_slices(aligned, r) == 4 * one_slice <= 0.6 * 7 * one_slice
    assert kept[0] - kept[1] == 3 * one_slice  # nothing else is kept in their place


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradients_are_those_of_layers_that_share_nothing(checkpointing):
    plain = llama()
    aligned = adapted(plain, aligned=True)
    if checkpointing:
        aligned.gradient_checkpointing_enable({"use_reentrant": False})
        aligned.train()
    separate = adapted(plain, aligned=True)
    for layer in layers(separate).values():
        layer.gathers.clear()
    for model in (aligned, separate):
        model(IDS, labels=IDS).loss.backward()
    for name, layer in layers(aligned).items():
        gradient = layer.paca_delta["default"].grad
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, layers(separate)[name].paca_delta["default"].grad), name


def test_copies_and_loaded_adapters_share_too(tmp_path):
    plain = llama()
    model = adapted(plain, aligned=True)
    model.save_pretrained(tmp_path)
    for other in (copy.deepcopy(model), PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)):
        found = {name.rsplit(".", 1)[-1]: layer.gathers.get("default") for name, layer in layers(other).items()}
        assert found["q_proj"] is found["k_proj"] is found["v_proj"] is not None
        assert found["gate_proj"] is found["up_proj"] is not found["q_proj"]
        assert found["o_proj"] is found["down_proj"] is None
        own = {id(layer.gathers["default"]) for layer in layers(model).values() if layer.gathers}
        assert id(found["q_proj"]) not in own


def test_nothing_is_shared_that_is_not_the_same():
    gather, x = SharedGather(), torch.randn(3, 8)
    first = gather(x, torch.tensor([1, 4]), x.dtype)
    assert gather(x, torch.tensor([1, 4]), x.dtype) is first
    assert torch.equal(gather(x, torch.tensor([1, 5]), x.dtype), x[:, [1, 5]])
    indices = torch.tensor([0, 2])
    kept_slice = gather(x, indices, x.dtype)
    assert gather(x.clone(), indices, x.dtype) is not kept_slice
    kept_slice = gather(x, indices, x.dtype)
    x.add_(1)
    assert torch.equal(gather(x, indices, x.dtype), x[:, [0, 2]])
    kept_slice = gather(x, indices, x.dtype)
    indices.add_(1)
    assert torch.equal(gather(x, indices, x.dtype), x[:, [1, 3]])
    other = torch.tensor([0, 2])
    assert torch.equal(gather(x, other, x.dtype), x[:, [0, 2]])
    assert gather(x, other, torch.float64).dtype == torch.float64
