"""What of the training data carries loss, and whether the model is taught where to stop."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paca.workbench.data.conversations import IGNORED


@dataclass(frozen=True)
class LossFacts:
    """Counts over training sequences.

    Args:
        sequences: How many were looked at.
        tokens: In them.
        learned: Tokens that carry loss.
        ending: Sequences that learn an EOS token.
    """

    sequences: int
    tokens: int
    learned: int
    ending: int


def count_loss(sequences: Iterable[Mapping[str, Sequence[int]]], ends: Collection[int]) -> LossFacts:
    """Count tokens, those that carry loss, and sequences that learn one of these EOS token ids.

    The first token of a sequence is predicted by nothing, so it carries no loss.
    """
    number = tokens = learned = ending = 0
    for sequence in sequences:
        labels = sequence["labels"][1:]
        number += 1
        tokens += len(labels) + 1
        learned += sum(label != IGNORED for label in labels)
        ending += any(label in ends for label in labels)
    return LossFacts(number, tokens, learned, ending)


def eos_token_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation config, in order."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return sorted({token for token in (*several, tokenizer.eos_token_id) if token is not None})
