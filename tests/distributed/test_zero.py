"""DeepSpeed's ZeRO-1 and ZeRO-2 step flat copies of the updates: what paca must notice of it, and DeepSpeed itself."""

import pytest
import torch
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import (
    adam,
    batch,
    largest_difference,
    make_model,
    trained,
    trained_alone,
    training_tolerance,
    updates,
)


class FlatOptimizer:
    """What ZeRO-1 does on one rank: a flat copy of all updates is stepped, then written back behind PyTorch's back."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.flat = torch.nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
        self.optimizer = adam([self.flat])

    def step(self):
        self.flat.grad = torch.cat([parameter.grad.flatten() for parameter in self.parameters])
        self.optimizer.step()
        for parameter, values in zip(self.parameters, self._parts(), strict=True):
            parameter.data.view(-1).copy_(values)
            parameter.grad = None

    def _parts(self):
        return self.flat.detach().split([parameter.numel() for parameter in self.parameters])


def train_flat():
    model = make_model()
    optimizer = FlatOptimizer(trained(model))
    for step in range(10):
        model(input_ids=batch(step), labels=batch(step)).loss.backward()
        optimizer.step()
    return updates(model)


def test_updates_that_are_written_back_after_the_step_are_used():
    alone, _ = trained_alone()
    assert largest_difference(train_flat(), alone) < training_tolerance()


def zero(rank, stage):
    """Ten steps of DeepSpeed's engine, without the C++ that it would compile first for collectives on a CPU."""
    import deepspeed
    import deepspeed.comm.torch

    deepspeed.comm.torch.build_shm_op = lambda: None
    deepspeed.init_distributed(dist_backend="gloo")
    model = make_model()
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    optimizer = adam(trained(model))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for step in range(10):
        tokens = batch(step, rank, 2)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    with deepspeed.zero.GatheredParameters(trained(model), enabled=stage == 3):
        return updates(model)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_trains_what_one_process_trains(stage, monkeypatch):
    pytest.importorskip("deepspeed", reason="pip install 'paca-peft[deepspeed]'")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    first, second = on_ranks(zero, stage)
    assert largest_difference(first, second) == 0
    assert largest_difference(first, trained_alone()[0]) < training_tolerance()
