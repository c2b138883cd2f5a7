"""From rows with preferred answers to what TRL's `DPOTrainer` and `KTOTrainer` make batches of."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from paca.errors import PacaError
from paca.workbench.data.conversations import IGNORED, encode_completion, encode_reply
from paca.workbench.data.formats import Row
from paca.workbench.data.preference_formats import ANSWERS
from paca.workbench.data.prepare import Counted, RawData, TrainingData, check_not_empty, mixed, spread
from paca.workbench.data.section import DataSection

Encoded = dict[str, Any]
ANSWER_NAMES = ("chosen_ids", "rejected_ids", "completion_ids")
LENGTH = "length"  # of the longest sequence of a row


def prepare_preferences(
    raw: RawData, section: DataSection, tokenizer: Any, length: int | None, seed: int = 42, paired: bool = True
) -> TrainingData:
    """Split, tokenize and mix rows with preferences into training and held-out ones.

    Rows with the same first question are all trained on or all held out. A PacaError if nothing is left of either.

    Args:
        raw: The rows.
        section: The recipe's `data` section.
        tokenizer: Of the model.
        length: Longer sequences will be cut at their end; rows that this makes equal are left out.
        seed: Of the order in which sources are mixed by `data.weights`.
        paired: Whether a row has two answers, as DPO compares them, or one with a label, as KTO takes it.

    Returns:
        Rows of `prompt_ids` with `chosen_ids` and `rejected_ids`, or with `completion_ids` and `label`.
    """
    from datasets import Dataset

    counted, counted_held_out = [Counted() for _ in raw.train], Counted()
    train, held_out = [], []
    for part, own in zip(raw.train, counted, strict=True):
        own.remarks.extend([part.remarks])
        kept, out = hold_out_prompts(part.rows, section.holdout_every)
        train.append(encode_preferences(kept, tokenizer, length, paired, own, section.whole_rows))
        held_out += encode_preferences(out, tokenizer, length, paired, counted_held_out, section.whole_rows)
    if raw.held_out is not None:
        counted_held_out.remarks.extend([raw.held_out.remarks])
        rows = raw.held_out.rows
        held_out = encode_preferences(rows, tokenizer, length, paired, counted_held_out, section.whole_rows)
    check_not_empty(train, held_out, raw, section, length, counted, counted_held_out)
    evaluated = Dataset.from_list(spread(held_out, section.eval_limit))
    trained = mixed(train, section.weights, seed)
    # KTO takes the rows in order, and compares each with the answer of another: not with that to the same prompt.
    trained = trained if paired else trained.shuffle(seed=seed)
    return TrainingData(trained, evaluated, len(held_out), Counted.joined(counted), counted_held_out)


def hold_out_prompts(rows: Sequence[Row], every: int | None) -> tuple[list[Row], list[Row]]:
    """Hold out the rows of each Nth first question: the others, and those; None holds out nothing."""
    questions = list(dict.fromkeys(map(_question, rows)))
    held = set(questions[::every]) if every is not None else set()
    return [row for row in rows if _question(row) not in held], [row for row in rows if _question(row) in held]


def _question(row: Row) -> str:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    said = (turn["content"] for turn in prompt if turn["role"] != "system")
    return next(said, prompt[0]["content"])


def encode_preferences(
    rows: Iterable[Row],
    tokenizer: Any,
    length: int | None,
    paired: bool,
    counted: Counted | None = None,
    whole: bool = False,
) -> list[Encoded]:
    """Tokenize rows with preferences; `counted` is told what became of them.

    Left out are rows whose prompt fills `length`, and pairs whose answers are equal up to there; with `whole`, all
    that are longer. A PacaError if pairs are wanted and a row has one answer.
    """
    counted = Counted() if counted is None else counted
    kept = []
    for row in rows:
        try:
            encoded = _encode(row, tokenizer, paired, partial(counted.remarks.add, place=row.place))
        except PacaError as error:
            raise PacaError(f"{row.place}: {error}") from error
        for one in encoded:
            counted.lengths.append(one[LENGTH])
            longer = length is not None and one[LENGTH] > length
            if whole and longer:
                counted.too_long += 1
                continue
            counted.cut += longer
            if _can_teach(one, length):
                kept.append(one)
            else:
                counted.dropped += 1
    return kept


def _encode(row: Row, tokenizer: Any, paired: bool, remark: Callable[[str], None]) -> list[Encoded]:
    names = ANSWERS if "chosen" in row else ("completion",)
    if paired and len(names) < 2:
        raise PacaError(
            "it has one answer and a label, where two answers are compared. Set training.loss_type=kto, which learns "
            "from single answers."
        )
    prompt, answers = encode_answers(tokenizer, row["prompt"], [row[name] for name in names], remark)
    if paired:
        longest = len(prompt) + max(map(len, answers))
        return [{"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1], LENGTH: longest}]
    labels = (True, False) if len(names) == 2 else (row["label"],)
    return [
        {"prompt_ids": prompt, "completion_ids": ids, "label": label, LENGTH: len(prompt) + len(ids)}
        for ids, label in zip(answers, labels, strict=True)
    ]


def encode_answers(
    tokenizer: Any, prompt: Any, answers: Sequence[Any], remark: Callable[[str], None] = lambda _: None
) -> tuple[list[int], list[list[int]]]:
    """Tokenize a prompt with each of its answers, EOS tokens behind them; the prompt's tokens, and each answer's.

    A token that reaches from the prompt into an answer is the answer's, and so is what follows the first difference.
    What a chat template leaves out is told to `remark`.
    """
    encode = encode_completion if isinstance(prompt, str) else partial(encode_reply, remark=remark)
    encoded = [encode(tokenizer, prompt, answer) for answer in answers]
    starts = [next(at for at, label in enumerate(one["labels"]) if label != IGNORED) for one in encoded]
    ids = [one["input_ids"] for one in encoded]
    shared = min(starts)
    while any(one[:shared] != ids[0][:shared] for one in ids):
        shared -= 1
    return ids[0][:shared], [one[shared:] for one in ids]


def _can_teach(row: Encoded, length: int | None) -> bool:
    room = None if length is None else length - len(row["prompt_ids"])
    if room is not None and room < 1:
        return False
    return "label" in row or row["chosen_ids"][:room] != row["rejected_ids"][:room]


def sequences(rows: Iterable[Mapping[str, Any]], length: int | None) -> Iterator[Mapping[str, list[int]]]:
    """The `input_ids` and `labels` of encoded rows: of each its own, or of its answers, cut at `length`."""
    for row in rows:
        if "input_ids" in row:
            yield row
        for name in ANSWER_NAMES:
            if name in row:
                ids = [*row["prompt_ids"], *row[name]]
                labels = [*[IGNORED] * len(row["prompt_ids"]), *row[name]]
                yield {"input_ids": ids[:length], "labels": labels[:length]}
