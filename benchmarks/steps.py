"""One training step, taken apart into forward, backward and optimizer, and the interleaved timing of several."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paca.memory import kept_for_backward


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
        embeddings: The batch as input embeddings, shape `(batch, tokens, hidden)`; copied.
        labels: Shape `(batch, tokens)`.
        learning_rate: Of a fused AdamW over what the model trains; nothing is stepped if it trains nothing.
    """

    def __init__(self, model: nn.Module, embeddings: Tensor, labels: Tensor, learning_rate: float = 1e-4) -> None:
        self.model = model
        self.embeddings = embeddings.detach().clone().requires_grad_(True)
        self.labels = labels
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, fused=True) if self.trained else None

    def loss(self) -> Tensor:
        """Run the forward pass; a scalar."""
        return self.model(inputs_embeds=self.embeddings, labels=self.labels).loss

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
        self.embeddings.grad = None
        moments.append(self._now())
        return StepTime(*(after - before for before, after in itertools.pairwise(moments)))

    def kept_bytes(self) -> int:
        """Bytes that one forward pass keeps for backward, above what lives anyway."""
        return kept_for_backward(self.loss)

    def _now(self) -> float:
        if self.embeddings.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def lower_quartile(values: list[float]) -> float:
    """The value a quarter of the way up: other work on the machine only ever adds time."""
    return sorted(values)[len(values) // 4]


def interleave(
    steps: Mapping[str, Callable[[], StepTime]], rounds: int, report: Callable[[int], None] = lambda done: None
) -> dict[str, list[StepTime]]:
    """Time several steps in turns, so that a slow moment of the machine hits all alike.

    Args:
        steps: What to run, by name.
        rounds: How often each is run; every other round goes backwards through the names.
        report: Called after each round with the number of rounds done.

    Returns:
        The times of each, in the order they were taken.
    """
    times: dict[str, list[StepTime]] = {name: [] for name in steps}
    for done in range(rounds):
        names = list(steps) if done % 2 == 0 else list(reversed(steps))
        for name in names:
            times[name].append(steps[name]())
        report(done + 1)
    return times
