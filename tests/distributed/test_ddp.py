"""DistributedDataParallel: the same adapter as one process, and `Δ`'s gradients alone on the network."""

import pytest
import torch
from peft import LoraConfig
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import (
    PACA,
    largest_difference,
    make_model,
    train,
    trained,
    trained_alone,
    training_tolerance,
    updates,
)
from torch.nn.parallel import DistributedDataParallel

from paca import PacaConfig
from paca.profiling.traffic import count_traffic


def ddp_run(rank, options):
    model = DistributedDataParallel(make_model(**options), broadcast_buffers=False)
    train(model, rank, 2)
    return updates(model)


def ddp_traffic(rank, method, options):
    model = DistributedDataParallel(make_model(method=method, **options), broadcast_buffers=False)
    train(model, rank, 2, steps=2)
    with count_traffic() as traffic:
        train(model, rank, 2, steps=1)
    return dict(traffic.bytes), sum(parameter.numel() * parameter.element_size() for parameter in trained(model))


@pytest.mark.parametrize("options", [PACA, {**PACA, "target_modules": ["q_proj", "down_proj"]}], ids=["all", "two"])
def test_two_ranks_train_what_one_process_trains(options):
    alone, _ = trained_alone(**options)
    first, second = on_ranks(ddp_run, options)
    assert largest_difference(first, second) == 0
    assert largest_difference(first, alone) < training_tolerance()
    assert min(float(update.abs().max()) for update in alone.values()) > 1e-3  # something was trained


def test_the_bytes_all_reduced_are_those_of_the_updates():
    for traffic, updates_bytes in on_ranks(ddp_traffic, PacaConfig, PACA):
        assert traffic == {"all-reduce": updates_bytes}


def test_half_the_bytes_of_lora_on_square_layers():
    square = {"target_modules": ["q_proj", "o_proj"], "r": 4}
    (paca, _), _ = on_ranks(ddp_traffic, PacaConfig, {**PACA, **square})
    (lora, _), _ = on_ranks(ddp_traffic, LoraConfig, square)
    assert paca["all-reduce"] * 2 == lora["all-reduce"] == 4 * (32 + 32) * 4 * 4  # four layers, rank 4, float32


def test_counting_sees_what_is_sent():
    with count_traffic() as traffic:
        torch.ones(3) + 1
    assert traffic.total == 0
