"""Steps that leave no trace: model, random numbers and trainer are afterwards what they were, bit for bit."""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def untouched(trainer: Any) -> Iterator[None]:
    """Let a `with` block train a trainer that has not trained yet, and undo it."""
    from paca.tuner.layers.base import PacaLayer

    model = trainer.model
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if _may_change(tensor)]
    saved = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    modes = [(module, module.training) for module in model.modules()]
    counters = {name: copy.deepcopy(getattr(trainer, name)) for name in _COUNTERS if hasattr(trainer, name)}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
                tensor.grad = None
        for module in model.modules():
            if isinstance(module, PacaLayer):
                module.give_back()  # products over the layout of training are rounded differently
        trainer.optimizer = trainer.lr_scheduler = None
        for name, value in counters.items():
            setattr(trainer, name, value)
        random.setstate(python)
        np.random.set_state(numpy)


# What TRL counts whenever it computes a loss.
_COUNTERS = ("_metrics", "_total_train_tokens")


def _may_change(tensor: torch.Tensor) -> bool:
    """Trained parameters, and all buffers: statistics of batch normalisation, say."""
    return tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter)
