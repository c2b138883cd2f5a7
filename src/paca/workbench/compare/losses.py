"""Loss and next-token accuracy on a data set, and the text on which forgetting shows."""

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from paca.errors import PacaError
from paca.workbench.data.conversations import IGNORED

BUILT_IN = "a short story"


@dataclass(frozen=True)
class Measured:
    """A measurement.

    Args:
        loss: Mean negative log-likelihood per token, in nats.
        accuracy: The share of tokens that the model held for the likeliest.
        tokens: How many tokens were predicted.
    """

    loss: float
    accuracy: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Spell it for JSON."""
        return asdict(self)


def measure(trainer: Any, data: Any) -> Measured:
    """Measure a trainer's model on tokenized sequences; the mean is over tokens, whatever the batches are.

    Args:
        trainer: An `SFTTrainer`; its model is left in the mode in which it was.
        data: A `datasets.Dataset` with `input_ids` and `labels`.

    Returns:
        The measurement.
    """
    model, training = trainer.model, trainer.model.training
    model.eval()
    total, hits, tokens = 0.0, 0, 0
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for batch in trainer.get_eval_dataloader(data):
            inputs = trainer._prepare_inputs(batch)
            targets = inputs["labels"][:, 1:]
            counted = targets != IGNORED
            output = model(**inputs)
            predicted = int(counted.sum())
            guesses = output.logits[:, -inputs["labels"].shape[1] : -1].argmax(-1)
            total += float(output.loss) * predicted
            hits += int(((guesses == targets) & counted).sum())
            tokens += predicted
    model.train(training)
    return Measured(total / max(tokens, 1), hits / max(tokens, 1), tokens)


def unrelated_text(path: str | None) -> str:
    """Read the text that has nothing to do with the task.

    Args:
        path: A text file; None for the story that comes with paca.

    Returns:
        The text.

    Raises:
        PacaError: If the file can't be read or holds nothing.
    """
    if path is None:
        return resources.files("paca.workbench.compare").joinpath("unrelated.txt").read_text(encoding="utf-8")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PacaError(f"--unrelated {path!r} can't be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise PacaError(f"--unrelated {path!r} is empty; name a text that has nothing to do with the task.")
    return text
