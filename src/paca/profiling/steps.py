"""One training step, taken apart into forward, backward and optimizer, and the interleaved timing of several."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..method.columns.resident import kept_tensors
from .activations import kept_for_backward
from .peak import Peak, StepTracker, state_tensors

Timed = TypeVar("Timed")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by part."""

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.optimizer


class TrainingStep:
    """A step on a fixed batch, with the gradient of its input embeddings computed as inside a deeper model.

    Args:
        model: A causal language model, with a method put on.
        batch: What its forward takes, `labels` among it. What is floating-point gets a gradient: `inputs_embeds` in
            place of `input_ids`, shape `(batch, tokens, hidden)`, make the backward pass go through every layer.
        optimizer: Makes one for the trained parameters; a fused AdamW when left out. Not called if there are none.
        context: Entered around the forward pass, such as autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.batch = {
            name: value.detach().clone().requires_grad_(True) if value.is_floating_point() else value
            for name, value in batch.items()
        }
        self.context = context
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        make = optimizer or (lambda trained: torch.optim.AdamW(trained, lr=1e-4, fused=True))
        self.optimizer = make(self.trained) if self.trained else None

    def loss(self) -> Tensor:
        """Run the forward pass; a scalar."""
        with self.context():
            loss: Tensor = self.model(**self.batch).loss
        return loss

    def run(self) -> StepTime:
        """Take the step and time its parts."""
        moments = [self._now()]
        loss = self.loss()
        moments.append(self._now())
        loss.backward()
        moments.append(self._now())
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        for value in self.batch.values():
            value.grad = None
        moments.append(self._now())
        return StepTime(*(after - before for before, after in itertools.pairwise(moments)))

    def kept_bytes(self) -> int:
        """Bytes that one forward pass keeps for backward, above what lives anyway."""
        return kept_for_backward(self.loss)

    def peak(self) -> Peak:
        """Take a step and find its peak of live bytes; after a first step, that is the peak of every later one."""
        with StepTracker(self.model, self.optimizer, [*self.batch.values(), *kept_tensors(self.model)]) as tracker:
            self.run()
        return tracker.peak()

    def held(self) -> Iterator[Tensor]:
        """What is alive between two steps: weights, kept columns, buffers, the optimizer's state and the batch."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from kept_tensors(self.model)
        yield from self.batch.values()
        yield from state_tensors(self.optimizer)

    def _now(self) -> float:
        if any(value.is_cuda for value in self.batch.values()):
            torch.cuda.synchronize()
        return time.perf_counter()


def lower_quartile(values: list[float]) -> float:
    """The value a quarter of the way up: other work on the machine only ever adds time."""
    return sorted(values)[len(values) // 4]


def quartiles(times: Sequence[StepTime]) -> dict[str, float]:
    """Lower quartiles in seconds: of whole steps (`total`), and of each part on its own."""
    parts = ("total", "forward", "backward", "optimizer")
    return {part: lower_quartile([getattr(step, part) for step in times]) for part in parts}


def interleave(
    steps: Mapping[str, Callable[[], Timed]], rounds: int, report: Callable[[int], None] = lambda done: None
) -> dict[str, list[Timed]]:
    """Time several steps in turns, so that a slow moment of the machine hits all alike.

    Args:
        steps: What to run, by name; each call returns the time that it took.
        rounds: How often each is run; every other round goes backwards through the names.
        report: Called after each round with the number of rounds done.

    Returns:
        The times of each, in the order they were taken.
    """
    times: dict[str, list[Timed]] = {name: [] for name in steps}
    for done in range(rounds):
        names = list(steps) if done % 2 == 0 else list(steps)[::-1]
        for name in names:
            times[name].append(steps[name]())
        report(done + 1)
    return times
