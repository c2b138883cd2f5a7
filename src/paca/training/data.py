"""From a recipe's documents to the training and held-out sequences that TRL's `SFTTrainer` takes as they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from paca.errors import PacaError
from paca.training.chat import encode_conversation, training_template
from paca.training.documents import Documents, Row, read_documents
from paca.training.recipe import DataSection

Item = TypeVar("Item")
Sequences = list[dict[str, list[int]]]


@dataclass(frozen=True)
class RawData:
    """A recipe's documents, before a tokenizer is there.

    Args:
        train: What `data.train` names.
        held_out: What `data.eval` names, if it names something.
    """

    train: Documents
    held_out: Documents | None


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and what it is evaluated on.

    Args:
        train: A `datasets.Dataset` with `input_ids` and `labels`.
        held_out: Another, of the sequences that are evaluated.
        held_out_total: How many held-out sequences there are in all.
    """

    train: Any
    held_out: Any
    held_out_total: int


def read_data(section: DataSection) -> RawData:
    """Read all documents of a recipe, so that a mistake in them shows before a model is loaded.

    Args:
        section: The recipe's data section.

    Returns:
        The documents.

    Raises:
        PacaError: If something is missing or cannot be parsed, or if training and held-out data differ in kind.
    """
    train = read_documents(section.train, section.subset, section.train_split)
    if section.eval is None:
        return RawData(train, None)
    held_out = read_documents(section.eval, section.subset, section.eval_split)
    if held_out.is_chat != train.is_chat:
        kinds = {True: "conversations", False: "plain text"}
        raise PacaError(
            f"data.train holds {kinds[train.is_chat]} and data.eval {kinds[held_out.is_chat]}; use the same kind."
        )
    return RawData(train, held_out)


def prepare_data(raw: RawData, section: DataSection, tokenizer: Any, length: int | None) -> TrainingData:
    """Split, tokenize and cut.

    Args:
        raw: The documents.
        section: The recipe's data section.
        tokenizer: The model's tokenizer.
        length: Tokens per sequence, `training.max_length`.

    Returns:
        Training and held-out sequences. Text is cut into blocks of `length`; conversations keep their bounds.

    Raises:
        PacaError: If nothing is left to train on or to hold out.
    """
    from datasets import Dataset

    if raw.held_out is not None:
        train, held_out = (_encode(part, part.rows, tokenizer, length) for part in (raw.train, raw.held_out))
    elif raw.train.continuous:
        train, held_out = hold_out(_encode(raw.train, raw.train.rows, tokenizer, length), section.holdout_every)
    else:
        split = hold_out(raw.train.rows, section.holdout_every)
        train, held_out = (_encode(raw.train, rows, tokenizer, length) for rows in split)
    _check_not_empty(train, held_out, raw, section)
    evaluated = spread(held_out, section.eval_limit)
    return TrainingData(Dataset.from_list(train), Dataset.from_list(evaluated), len(held_out))


def hold_out(items: Sequence[Item], every: int | None) -> tuple[list[Item], list[Item]]:
    """Split off the first of each `every` items.

    Args:
        items: What to split.
        every: 10 holds out the 1st, 11th, 21st; None holds out nothing.

    Returns:
        What is kept, and what is held out.
    """
    held = [every is not None and index % every == 0 for index in range(len(items))]
    kept = [item for item, out in zip(items, held, strict=True) if not out]
    return kept, [item for item, out in zip(items, held, strict=True) if out]


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """Choose at most `most` items at even distances.

    Args:
        items: What to choose from.
        most: How many; None for all.

    Returns:
        The chosen items, in order.
    """
    if most is None or len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _encode(documents: Documents, rows: Iterable[Row], tokenizer: Any, length: int | None) -> Sequences:
    if not documents.is_chat:
        return _text_blocks([row["text"] for row in rows], tokenizer, length)
    template = training_template(tokenizer)
    encoded = [encode_conversation(tokenizer, row["messages"], template) for row in rows]
    cut = [{key: ids[:length] for key, ids in sequence.items()} for sequence in encoded]
    return [sequence for sequence in cut if any(label >= 0 for label in sequence["labels"][1:])]


def _text_blocks(texts: list[str], tokenizer: Any, length: int | None) -> Sequences:
    """Write the texts one after another, an end mark behind each, and cut that into blocks."""
    if not texts:
        return []
    encoded = tokenizer(texts)["input_ids"]
    end = tokenizer.eos_token_id
    ids = [token for sequence in encoded for token in (*sequence, *([] if end is None else [end]))]
    size = length or len(ids)
    blocks = [ids[start : start + size] for start in range(0, len(ids), size)]
    # A block of one token predicts nothing.
    return [{"input_ids": block, "labels": block} for block in blocks if len(block) > 1]


def _check_not_empty(train: Sequences, held_out: Sequences, raw: RawData, section: DataSection) -> None:
    if train and held_out:
        return
    unit = "blocks" if raw.train.continuous else "rows"
    count = len(train) + len(held_out) if raw.train.continuous else len(raw.train.rows)
    if section.eval is not None:
        key, value = ("data.eval", section.eval) if train else ("data.train", section.train)
        raise PacaError(f"{key} = {value!r} has nothing that carries loss within training.max_length tokens.")
    raise PacaError(
        f"data.train = {section.train!r} has {count} {unit}, too few to hold some out and train on the rest; take "
        "more data, a smaller training.max_length, or name held-out data with data.eval."
    )
