"""Loss and perplexity on held-out data: the mean over all tokens that carry loss, whatever the batches are."""

import math
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from tqdm.auto import tqdm

from paca.workbench.base.processes import rank, shared_out, summed, world_size
from paca.workbench.data.conversations import IGNORED


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
        trainer: An `SFTTrainer` with an evaluation data set; several processes share its batches out.

    Returns:
        The measurement.
    """
    model = trainer.model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad(), trainer.compute_loss_context_manager():
        batches = _batches(trainer)
        for batch, counts in shared_out(tqdm(batches, desc="evaluating", disable=_silent(trainer), leave=False)):
            inputs = trainer._prepare_inputs(batch)
            predicted = int((inputs["labels"][:, 1:] != IGNORED).sum())
            loss = float(model(**inputs).loss)
            if counts:
                total += loss * predicted
                tokens += predicted
    total, all_tokens = summed([total, float(tokens)], trainer.args.device)
    return HeldOut(total / max(all_tokens, 1), int(all_tokens))


def _batches(trainer: Any) -> Any:
    """The held-out batches, all of them on every rank."""
    if world_size() == 1:
        return trainer.get_eval_dataloader()
    # accelerate's own would repeat sequences until every rank has the same number, and count these twice.
    with mock.patch.object(trainer.accelerator, "prepare", lambda loader: loader):
        return trainer.get_eval_dataloader()


def _silent(trainer: Any) -> bool:
    return trainer.args.disable_tqdm or rank() > 0
