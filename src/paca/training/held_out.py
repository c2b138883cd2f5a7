"""Loss and perplexity on held-out data: the mean over all tokens that carry loss, whatever the batches are."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from paca.training.chat import IGNORED


@dataclass(frozen=True)
class HeldOut:
    """A measurement on held-out data.

    Args:
        loss: Mean negative log-likelihood per token, in nats.
        tokens: How many tokens were predicted.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluate(trainer: Any) -> HeldOut:
    """Measure a trainer's model on its evaluation data set.

    Trainer's own `evaluate` averages the batches' means, which weights the tokens of short conversations more.

    Args:
        trainer: An `SFTTrainer` with an evaluation data set, in one process.

    Returns:
        The measurement.
    """
    model = trainer.model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad(), trainer.compute_loss_context_manager():
        batches = trainer.get_eval_dataloader()
        for batch in tqdm(batches, desc="evaluating", disable=trainer.args.disable_tqdm, leave=False):
            inputs = trainer._prepare_inputs(batch)
            predicted = int((inputs["labels"][:, 1:] != IGNORED).sum())
            total += float(model(**inputs).loss) * predicted
            tokens += predicted
    return HeldOut(total / max(tokens, 1), tokens)
