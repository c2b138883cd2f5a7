"""From a recipe's documents to the training and held-out sequences that TRL's `SFTTrainer` takes as they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from paca.errors import PacaError
from paca.workbench.base.messages import problem_list
from paca.workbench.base.waiting import stage
from paca.workbench.data.conversations import encode_completion, encode_conversation
from paca.workbench.data.documents import Documents, Place, joined, read_sources
from paca.workbench.data.formats import FORMATS, Formats, Row
from paca.workbench.data.remarks import Remarks
from paca.workbench.data.rendering import training_template
from paca.workbench.data.section import DataSection
from paca.workbench.data.turns import TRAIN

Item = TypeVar("Item")
Sequences = list[dict[str, list[int]]]
_UNMARKED = "all answers are marked to carry no loss, so the row is left out"


@dataclass(frozen=True)
class RawData:
    """A recipe's documents, before a tokenizer is there.

    Args:
        train: What `data.train` names: one part, or one for each of `data.weights`.
        held_out: What `data.eval` names, if it names something.
    """

    train: list[Documents]
    held_out: Documents | None


@dataclass
class Counted:
    """What encoding did to rows.

    Args:
        lengths: Tokens of each row before it was cut; of a block where text is cut into blocks.
        cut: How many rows were longer than a sequence may be.
        dropped: How many of these had nothing left that carries loss.
        too_long: How many were longer, and left out by `data.whole_rows`.
        remarks: What of the rows is not used.
    """

    lengths: list[int] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0
    too_long: int = 0
    remarks: Remarks = field(default_factory=Remarks)

    @classmethod
    def joined(cls, parts: Sequence["Counted"]) -> "Counted":
        """Add up what became of the rows of several sources."""
        whole = cls([length for part in parts for length in part.lengths])
        for name in ("cut", "dropped", "too_long"):
            setattr(whole, name, sum(getattr(part, name) for part in parts))
        whole.remarks.extend(part.remarks for part in parts)
        return whole


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and what it is evaluated on.

    Args:
        train: A `datasets.Dataset` with `input_ids` and `labels`.
        held_out: Another, of the sequences that are evaluated.
        held_out_total: How many held-out sequences there are in all.
        counted: What became of the rows of `train`, before any mixing or packing.
        counted_held_out: What became of those that are held out.
    """

    train: Any
    held_out: Any
    held_out_total: int
    counted: Counted
    counted_held_out: Counted

    @property
    def remarks(self) -> Remarks:
        """What of the data is not used, in training or held out."""
        remarks = Remarks()
        remarks.extend([self.counted.remarks, self.counted_held_out.remarks])
        return remarks


def read_data(section: DataSection, formats: Formats = FORMATS) -> RawData:
    """Read all documents of a recipe, so that a mistake in them shows before a model is loaded.

    A PacaError says what is missing or cannot be parsed, or that training and held-out data differ in kind.
    """
    names = _listed(section.train)
    parts = read_sources(names, Place(section.path, section.subset, section.train_split, section.format, formats))
    train = parts if section.weights else [joined(names, parts)]
    if section.whole_rows and all(part.is_text for part in train):
        raise PacaError(
            f"data.whole_rows: data.train = {section.train!r} is plain text, which is cut into blocks of "
            "training.max_length tokens whatever its rows are. Leave data.whole_rows out."
        )
    if section.eval is None:
        return RawData(train, None)
    names = _listed(section.eval)
    place = Place(section.path, section.subset, section.eval_split, section.format, formats)
    held_out = joined(names, read_sources(names, place))
    if held_out.is_text not in {part.is_text for part in train}:
        kinds = {False: "conversations", True: "plain text"}
        raise PacaError(
            f"data.train holds {kinds[train[0].is_text]} and data.eval {kinds[held_out.is_text]}; use the same kind."
        )
    return RawData(train, held_out)


def _listed(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


def prepare_data(
    raw: RawData, section: DataSection, tokenizer: Any, length: int | None, seed: int = 42
) -> TrainingData:
    """Split, tokenize, cut and mix documents into training and held-out sequences.

    Text is cut into blocks of `length` tokens; all other rows keep their bounds. `seed` sets the order in which
    sources are mixed by `data.weights`. A PacaError if nothing is left to train on or to hold out.
    """
    from datasets import Dataset

    stage("encoding the data")
    counted, counted_held_out = [Counted() for _ in raw.train], Counted()
    split = [
        _split(part, section, tokenizer, length, own, counted_held_out)
        for part, own in zip(raw.train, counted, strict=True)
    ]
    train = [kept for kept, _ in split]
    held_out = [sequence for _, out in split for sequence in out]
    if raw.held_out is not None:
        counted_held_out.remarks.extend([raw.held_out.remarks])
        held_out = encode(
            raw.held_out.is_text, raw.held_out.rows, tokenizer, length, counted_held_out, section.whole_rows
        )
    check_not_empty(train, held_out, raw, section, length, counted, counted_held_out)
    evaluated = spread(held_out, section.eval_limit)
    return TrainingData(
        mixed(train, section.weights, seed),
        Dataset.from_list(evaluated),
        len(held_out),
        Counted.joined(counted),
        counted_held_out,
    )


def _split(
    part: Documents, section: DataSection, tokenizer: Any, length: int | None, counted: Counted, held_out: Counted
) -> tuple[Sequences, Sequences]:
    """One source's sequences: those that are trained on, and those that are held out of it."""
    counted.remarks.extend([part.remarks])
    if section.eval is not None:
        return encode(part.is_text, part.rows, tokenizer, length, counted, section.whole_rows), []
    if part.continuous:
        return hold_out(encode(True, part.rows, tokenizer, length, counted), section.holdout_every)
    kept, out = hold_out(part.rows, section.holdout_every)
    trained = encode(part.is_text, kept, tokenizer, length, counted, section.whole_rows)
    return trained, encode(part.is_text, out, tokenizer, length, held_out, section.whole_rows)


def mixed(parts: Sequence[Sequence[Any]], weights: list[float] | None, seed: int) -> Any:
    """Make one data set, of which each part is about its weight's share. A part that is used up begins again."""
    from datasets import Dataset, interleave_datasets

    data_sets = [Dataset.from_list(list(part)) for part in parts]
    if weights is None:
        return data_sets[0]
    total = sum(weights)
    return interleave_datasets(
        data_sets, probabilities=[weight / total for weight in weights], seed=seed, stopping_strategy="all_exhausted"
    )


def hold_out(items: Sequence[Item], every: int | None) -> tuple[list[Item], list[Item]]:
    """Return items without the first of each `every`, and those: 10 holds out the 1st, 11th, 21st; None nothing."""
    held = [every is not None and index % every == 0 for index in range(len(items))]
    kept = [item for item, out in zip(items, held, strict=True) if not out]
    return kept, [item for item, out in zip(items, held, strict=True) if out]


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """Choose at most `most` items at even distances, in order; None chooses all."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def encode(
    is_text: bool,
    rows: Iterable[Row],
    tokenizer: Any,
    length: int | None,
    counted: Counted | None = None,
    whole: bool = False,
) -> Sequences:
    """Tokenize rows of one kind and cut them; `input_ids` and `labels` of each sequence that carries loss.

    Plain text is cut into blocks of `length` tokens; other rows keep their bounds, and with `whole` those that are
    longer are left out. `counted` is told what became of the rows.
    """
    counted = Counted() if counted is None else counted
    if is_text:
        blocks = _text_blocks([row["text"] for row in rows], tokenizer, length)
        counted.lengths += [len(block["input_ids"]) for block in blocks]
        return blocks
    encoded = encode_rows(rows, tokenizer, counted.remarks)
    counted.lengths += [len(sequence["input_ids"]) for sequence in encoded]
    fitting = [sequence for sequence in encoded if length is None or len(sequence["input_ids"]) <= length]
    longer = len(encoded) - len(fitting)
    if whole:
        encoded, counted.too_long = fitting, counted.too_long + longer
    else:
        counted.cut += longer
    cut = [{key: ids[:length] for key, ids in sequence.items()} for sequence in encoded]
    kept = [sequence for sequence in cut if any(label >= 0 for label in sequence["labels"][1:])]
    counted.dropped += len(cut) - len(kept)
    return kept


def encode_rows(rows: Iterable[Row], tokenizer: Any, remarks: Remarks | None = None) -> Sequences:
    """Tokenize conversations, and prompts with completions, at their full length: `input_ids` and `labels` of each.

    What a chat template leaves out is added to `remarks`; a PacaError has the first few rows that it can't write.
    """
    sequences, template, problems = [], None, []
    remarks = Remarks() if remarks is None else remarks
    for row in rows:
        if "messages" not in row:
            sequences.append(encode_completion(tokenizer, row["prompt"], row["completion"]))
            continue
        template = template or (training_template(tokenizer),)
        if not any(turn.get(TRAIN, True) for turn in row["messages"] if turn["role"] == "assistant"):
            remarks.add(_UNMARKED, row.place)
            continue
        try:
            sequences.append(encode_conversation(tokenizer, row, template[0], remarks))
        except PacaError as error:
            problems.append(f"{row.place}: {error}")
    if problems:
        raise PacaError(problem_list(problems, most=3, separator="\n"))
    return sequences


def _text_blocks(texts: list[str], tokenizer: Any, length: int | None) -> Sequences:
    """Write the texts one after another, an EOS token behind each, and cut that into blocks."""
    if not texts:
        return []
    encoded = tokenizer(texts)["input_ids"]
    end = tokenizer.eos_token_id
    ids = [token for sequence in encoded for token in (*sequence, *([] if end is None else [end]))]
    size = length or len(ids)
    blocks = [ids[start : start + size] for start in range(0, len(ids), size)]
    # A block of one token predicts nothing.
    return [{"input_ids": block, "labels": block} for block in blocks if len(block) > 1]


def check_not_empty(
    train: Sequence[Sequence[Any]],
    held_out: Sequence[Any],
    raw: RawData,
    section: DataSection,
    length: int | None,
    counted: Sequence[Counted],
    counted_held_out: Counted,
) -> None:
    """Refuse data of which nothing is left, of a source of `train` or held out, by what became of its rows."""
    for part, kept, own in zip(raw.train, train, counted, strict=True):
        if not kept:
            both = section.eval is None and not held_out
            lost = Counted.joined([own, counted_held_out]) if both else own
            raise PacaError(_nothing_left(f"data.train = {section.train!r}", "rows", part, lost, length))
    if not held_out:
        name = f"data.train = {section.train!r}" if section.eval is None else f"data.eval = {section.eval!r}"
        part = raw.held_out or raw.train[0]
        raise PacaError(_nothing_left(name, "held-out rows", part, counted_held_out, length))


def _nothing_left(name: str, what: str, part: Documents, counted: Counted, length: int | None) -> str:
    """Say why nothing of a source is left to train on, or to hold out, by what became of its rows."""
    if counted.too_long:
        return (
            f"{name}: {counted.too_long:,} of {len(counted.lengths):,} {what} are longer than training.max_length = "
            f"{length}, and left out by data.whole_rows; the longest has "
            f"{max(counted.lengths):,} tokens: raise it."
        )
    if counted.cut and not part.is_text:
        return (
            f"{name}: all {len(counted.lengths):,} {what} lose what they teach at training.max_length = {length}; the "
            f"longest has {max(counted.lengths):,} tokens: raise it."
        )
    if _UNMARKED in counted.remarks.places or (counted.lengths and not part.is_text):
        return " ".join([f"{name} has nothing that carries loss.", *(f"{line}." for line in counted.remarks.lines())])
    count, unit = (len(counted.lengths), "blocks") if part.continuous else (len(part.rows), "rows")
    return (
        f"{name} has {count} {unit}, too few to hold some out and train on the rest; take more data, a smaller "
        "training.max_length, or name held-out data with data.eval."
    )
