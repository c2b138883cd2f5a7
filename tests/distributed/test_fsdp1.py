"""FSDP1 flattens parameters, which is refused before anything is trained."""

import pytest
import torch
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import batch, make_model
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
