"""FSDP1 flattens parameters, which is refused before anything is trained; on one process it leaves them whole."""

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import batch, make_model
from tests.tuner.layers import every
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from paca import PacaError


def refused(rank, original):
    model = make_model()
    block = type(model.get_base_model().model.layers[0])
    # What parameters in one flat one must have in common is requires_grad: else each linear part is one of its own.
    policy = ModuleWrapPolicy({block} if original else {torch.nn.Linear, torch.nn.ParameterDict})
    options = {"auto_wrap_policy": policy, "use_orig_params": original, "device_id": torch.device("cpu")}
    model = FullyShardedDataParallel(model, **options)
    try:
        model(input_ids=batch(0))
    except PacaError as error:
        return str(error)
    return None


@pytest.mark.parametrize("original", [False, True])
def test_flattened_parameters_are_refused(original):
    for message in on_ranks(refused, original):
        assert "FSDP1 flattens parameters" in message
        assert "Shard with FSDP2 instead" in message


def alone(rank, kinds):
    return [alone_with(kind) for kind in kinds]


def alone_with(kind):
    plain, model = every.adapted(kind)
    x = every.inputs(kind)
    with torch.no_grad():
        base, without, state = plain(*x), model(*x), get_peft_model_state_dict(model)
    model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    fresh = every.adapted(kind, init_weights=True, random_seed=1)[1]
    with torch.no_grad():
        wrapped, wrapped_state = model(*x), get_peft_model_state_dict(model)
        set_peft_model_state_dict(fresh, wrapped_state)
        loaded = fresh(*x)
    model(*x).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return base, without, wrapped, loaded, state, wrapped_state, gradients


def test_on_one_process_it_computes_and_saves_as_without_it():
    kinds = [kind for kind in every.KINDS if kind != "experts"]
    (found,) = on_ranks(alone, kinds, ranks=1)
    for kind, (base, without, wrapped, loaded, state, wrapped_state, gradients) in zip(kinds, found, strict=True):
        assert not torch.equal(without, base), kind
        assert torch.equal(wrapped, without), kind
        assert torch.equal(loaded, without), kind
        assert wrapped_state.keys() == state.keys(), kind
        assert all(torch.equal(wrapped_state[name], value) for name, value in state.items()), kind
        model = every.adapted(kind)[1]
        model(*every.inputs(kind)).square().sum().backward()
        wanted = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        assert wanted
        torch.testing.assert_close(gradients, wanted)
