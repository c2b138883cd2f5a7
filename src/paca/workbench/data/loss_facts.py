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
        ending: Sequences with an end mark among what they learn.
    """

    sequences: int
    tokens: int
    learned: int
    ending: int


def count_loss(sequences: Iterable[Mapping[str, Sequence[int]]], ends: Collection[int]) -> LossFacts:
    """Count tokens, and those that carry loss.

    Args:
        sequences: Each with `labels`.
        ends: Ids of end marks.

    Returns:
        The counts. The first token of a sequence is predicted by nothing, so it carries no loss.
    """
    number = tokens = learned = ending = 0
    for sequence in sequences:
        labels = sequence["labels"][1:]
        number += 1
        tokens += len(labels) + 1
        learned += sum(label != IGNORED for label in labels)
        ending += any(label in ends for label in labels)
    return LossFacts(number, tokens, learned, ending)


def end_marks(tokenizer: Any, model: Any = None) -> set[int]:
    """Collect the tokens that end an answer.

    Args:
        tokenizer: Has one, perhaps.
        model: Its generation configuration may name others, such as the end of a turn.

    Returns:
        Their ids.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return {mark for mark in (*several, tokenizer.eos_token_id) if mark is not None}
