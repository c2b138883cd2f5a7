"""What a model prefers on held-out data, and how far it has gone from its reference."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from paca.tuner.model import TRL_REFERENCE
from paca.workbench.base.processes import gathered, rank, shared_out
from paca.workbench.training.held_out import held_out_batches


@dataclass
class Preferences:
    """Sums over held-out answers, filled batch by batch.

    Rewards are DPO's, `β (log π(y|x) - log π_ref(y|x))`.

    Args:
        liked: The reward and the log-probability of each preferred answer.
        disliked: Those of each other answer; of the same prompts and in the same order where answers come in pairs.
        kl: The sum over tokens of the divergence of the model's distribution from its reference's, in nats.
        tokens: Of all answers.
        paired: Whether answers come in pairs.
    """

    liked: list[tuple[float, float]] = field(default_factory=list)
    disliked: list[tuple[float, float]] = field(default_factory=list)
    kl: float = 0.0
    tokens: int = 0
    paired: bool = True

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json holds of it.

        `accuracy` is how often the preferred answer has the higher reward, ties by half: of pairs, or where there are
        none, of all that can be made. `likelihood_accuracy` is how often it is the likelier one.
        """
        rewards, likelihoods = (self._compared(at) for at in (0, 1))
        accuracy = _mean([_won(margin) for margin in rewards])
        number = min(len(self.liked), len(self.disliked))
        return {
            "accuracy": accuracy,
            "accuracy_error": math.sqrt(accuracy * (1 - accuracy) / max(number, 1)),
            "likelihood_accuracy": _mean([_won(margin) for margin in likelihoods]),
            "margin": _mean(rewards),
            "loss": _mean([math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0) for margin in rewards]),
            "kl": self.kl / max(self.tokens, 1),
            "answers": len(self.liked) + len(self.disliked),
            "tokens": self.tokens,
        }

    def _compared(self, at: int) -> list[float]:
        """By how much preferred answers are above the others, in rewards (0) or log-probabilities (1)."""
        if self.paired:
            return [liked[at] - other[at] for liked, other in zip(self.liked, self.disliked, strict=True)]
        return [liked[at] - other[at] for liked in self.liked for other in self.disliked]


def _won(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Inside a `with` block, have a `PeftModel` be its reference: TRL's copy of an adapter, or the base model.

    The base is the same memory with the columns out. A model without adapters is its own reference.
    """
    if not hasattr(model, "peft_config"):
        yield
        return
    if TRL_REFERENCE not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    model.set_adapter(TRL_REFERENCE)
    try:
        yield
    finally:
        model.set_adapter(active)


@torch.no_grad()
def add_batch(model: Any, batch: Mapping[str, Tensor], beta: float, found: Preferences) -> None:
    """Measure one batch of TRL's collators: pairs, the preferred answers first, or answers with their `label`."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False).logits
    with as_reference(model):
        reference = model(**inputs, use_cache=False).logits
    scores = []
    for row, mask in enumerate(batch["completion_mask"][:, 1:].bool()):
        tokens = batch["input_ids"][row, 1:][mask]
        # Virtual tokens of prompt tuning come first. Row by row, since these are as large as the logits.
        ours, theirs = (
            torch.log_softmax(one[row, -batch["input_ids"].shape[1] : -1][mask].float(), -1)
            for one in (logits, reference)
        )
        said, said_by_reference = (one.gather(-1, tokens[:, None]).sum().item() for one in (ours, theirs))
        scores.append((beta * (said - said_by_reference), said))
        found.kl += (ours.exp() * (ours - theirs)).sum().item()
        found.tokens += len(tokens)
    half = len(scores) // 2
    labels = batch["label"].tolist() if "label" in batch else [True] * half + [False] * half
    found.paired = "label" not in batch
    for score, liked in zip(scores, labels, strict=True):
        (found.liked if liked else found.disliked).append(score)


def evaluate_preferences(trainer: Any) -> dict[str, Any]:
    """Measure a trainer's model on its held-out data, whose batches several processes share out.

    The model is left in the mode it was in.
    """
    model, training = trainer.model, trainer.model.training
    model.eval()
    own, repeated = Preferences(), Preferences()
    silent = trainer.args.disable_tqdm or rank() > 0
    with trainer.compute_loss_context_manager():
        for batch, counts in shared_out(tqdm(held_out_batches(trainer), desc="evaluating", disable=silent)):
            add_batch(model, trainer._prepare_inputs(batch), trainer.args.beta, own if counts else repeated)
    model.train(training)
    parts = gathered(own)
    return Preferences(
        liked=[answer for part in parts for answer in part.liked],
        disliked=[answer for part in parts for answer in part.disliked],
        kl=sum(part.kl for part in parts),
        tokens=sum(part.tokens for part in parts),
        paired=parts[0].paired,
    ).to_dict()
