"""Measures training steps while Trainer runs them: tokens per second, and the peak bytes of one step."""

import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from paca.method.columns.resident import kept_tensors
from paca.profiling.peak import state_tensors
from paca.profiling.tracker import StorageTracker, track


class StepMeter(TrainerCallback):
    """Times the steps of this process, and counts the live bytes during its second one.

    In the second step the optimizer's state is there already, so its peak is that of every later step. On a CUDA
    device the allocator counts; elsewhere each operator of that step is watched, which slows it, so it is not timed.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._seconds = 0.0
        self._tokens = 0
        self._started = 0.0
        self._tokens_before: int | float = 0
        self._measured_step = 0
        self._tracker: StorageTracker | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Non-padding tokens per second of the timed steps; None when no step was timed."""
        return self._tokens / self._seconds if self._seconds else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the step to count bytes in: the second that is left, or the only one."""
        self._measured_step = min(state.global_step + 2, state.max_steps)
        self._tokens_before = state.num_input_tokens_seen
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Start the clock, or the count of bytes."""
        if state.global_step + 1 == self._measured_step and not torch.cuda.is_available():
            self._tracker = track(_held_tensors(model, kwargs.get("optimizer")))
            self._tracker.__enter__()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, or the count of bytes."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_bytes = torch.cuda.max_memory_allocated()
        tokens = state.num_input_tokens_seen - self._tokens_before
        self._tokens_before = state.num_input_tokens_seen
        if self._tracker is not None:
            self._tracker.__exit__(None, None, None)
            self.peak_bytes = self._tracker.peak_bytes
            self._tracker = None
        elif state.global_step > self._measured_step - 1:  # the first step warms up
            self._seconds += time.perf_counter() - self._started
            self._tokens += int(tokens)


def _held_tensors(model: Any, optimizer: Any) -> Iterator[Tensor]:
    """What is alive between two steps: weights, pretrained columns, buffers, gradients and the optimizer's state."""
    gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    state = state_tensors(getattr(optimizer, "optimizer", optimizer))  # accelerate's holds the optimizer itself
    return chain(model.parameters(), model.buffers(), kept_tensors(model), gradients, state)
