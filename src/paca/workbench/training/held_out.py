"""Loss and perplexity on held-out data: the mean over all tokens that carry loss, whatever the batches are."""

import math
from contextlib import ExitStack
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
        accuracy: The share of tokens that the model held for the likeliest; None where that was not looked at.
    """

    loss: float
    tokens: int
    accuracy: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json holds of it."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def evaluate(trainer: Any, data: Any = None, accuracy: bool = False) -> HeldOut:
    """Measure a trainer's model on tokenized sequences.

    Trainer's own `evaluate` averages the batches' means, which weights the tokens of short conversations more.

    Args:
        trainer: An `SFTTrainer`; several processes share the batches out. Its model is left in the mode it was in.
        data: A `datasets.Dataset` with `input_ids` and `labels`; the evaluation data set when omitted.
        accuracy: Whether to look at the logits as well.

    Returns:
        The measurement.
    """
    model, training = trainer.model, trainer.model.training
    model.eval()
    total = tokens = hits = 0.0
    with torch.no_grad(), trainer.compute_loss_context_manager():
        silent = trainer.args.disable_tqdm or rank() > 0
        batches = tqdm(held_out_batches(trainer, data), desc="evaluating", disable=silent, leave=False)
        for batch, counts in shared_out(batches):
            inputs = trainer._prepare_inputs(batch)
            targets = inputs["labels"][:, 1:]
            learned = targets != IGNORED
            output = model(**inputs)
            if not counts:
                continue
            predicted = int(learned.sum())
            total += float(output.loss) * predicted
            tokens += predicted
            if accuracy:  # virtual tokens of prompt tuning come first
                guesses = output.logits[:, -inputs["labels"].shape[1] : -1].argmax(-1)
                hits += int(((guesses == targets) & learned).sum())
    model.train(training)
    total, tokens, hits = summed([total, tokens, hits], trainer.args.device)
    return HeldOut(total / max(tokens, 1), int(tokens), hits / max(tokens, 1) if accuracy else None)


def held_out_batches(trainer: Any, data: Any = None) -> Any:
    """The held-out batches, all of them on every rank, an incomplete one too, which training may leave out."""
    with ExitStack() as changed:
        changed.enter_context(mock.patch.object(trainer.args, "dataloader_drop_last", False))
        if world_size() > 1:
            # accelerate's own would repeat sequences until every rank has the same number, and count these twice.
            changed.enter_context(mock.patch.object(trainer.accelerator, "prepare", lambda loader: loader))
        return trainer.get_eval_dataloader(data)
