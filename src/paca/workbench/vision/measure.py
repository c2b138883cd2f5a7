"""How well a classifier tells held-out images apart: accuracy, loss, and the classes that it answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Answers:
    """A measurement on held-out images.

    Args:
        labels: The true class of each image.
        answered: The class that the model gave most weight.
        confidence: The probability that it gave that class.
        loss: Mean cross-entropy, in nats per image.
    """

    labels: tuple[int, ...]
    answered: tuple[int, ...]
    confidence: tuple[float, ...]
    loss: float

    @property
    def accuracy(self) -> float:
        """The share of images whose class was answered."""
        right = sum(label == answer for label, answer in zip(self.labels, self.answered, strict=True))
        return right / max(len(self.labels), 1)

    def per_class(self, classes: Sequence[str]) -> dict[str, float | None]:
        """The share of each class's images that were answered right; None for a class without images."""
        counts = [[0, 0] for _ in classes]
        for label, answer in zip(self.labels, self.answered, strict=True):
            counts[label][0] += label == answer
            counts[label][1] += 1
        return {name: right / total if total else None for name, (right, total) in zip(classes, counts, strict=True)}

    def mistakes(self) -> list[int]:
        """Positions of the images that were answered wrong, the most confident mistake first."""
        pairs = enumerate(zip(self.labels, self.answered, strict=True))
        wrong = [position for position, (label, answer) in pairs if label != answer]
        return sorted(wrong, key=lambda position: -self.confidence[position])


def answer(trainer: Any) -> Answers:
    """Let a trainer's model classify its evaluation data, in one process."""
    model = trainer.model.eval()
    labels: list[int] = []
    answered: list[int] = []
    confidence: list[float] = []
    loss = 0.0
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for batch in tqdm(_batches(trainer), desc="evaluating", disable=trainer.args.disable_tqdm, leave=False):
            inputs = trainer._prepare_inputs(batch)
            logits = model(pixel_values=inputs["pixel_values"]).logits.float()
            loss += float(F.cross_entropy(logits, inputs["labels"], reduction="sum"))
            best = logits.softmax(-1).max(-1)
            labels += inputs["labels"].tolist()
            answered += best.indices.tolist()
            confidence += best.values.tolist()
    return Answers(tuple(labels), tuple(answered), tuple(confidence), loss / max(len(labels), 1))


def _batches(trainer: Any) -> DataLoader[dict[str, Any]]:
    """All evaluation images in order: Trainer's own loader leaves the last ones out under `dataloader_drop_last`."""
    return DataLoader(
        trainer.eval_dataset,
        batch_size=trainer.args.eval_batch_size,
        collate_fn=trainer.data_collator,
        num_workers=trainer.args.dataloader_num_workers,
    )
