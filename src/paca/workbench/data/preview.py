"""Shows training data as the model sees it: the first sequences with what carries loss marked, and their lengths."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from paca.workbench.data.conversations import IGNORED
from paca.workbench.data.loss_facts import count_loss, eos_token_ids
from paca.workbench.data.preference import sequences
from paca.workbench.data.prepare import Counted, TrainingData

LEARNED = "bold green"
BRACKETS = "⟦", "⟧"  # where there is no colour
WIDTH = 40


def pieces(sequence: Mapping[str, Sequence[int]], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Cut a sequence where what carries loss begins or ends; yield each text, and whether it is learned."""
    learned = [label != IGNORED for label in sequence["labels"]]
    if learned:
        learned[0] = False  # nothing predicts the first token
    for marked, run in groupby(zip(sequence["input_ids"], learned, strict=True), key=lambda pair: pair[1]):
        yield tokenizer.decode([token for token, _ in run]), marked


def render(sequence: Mapping[str, Sequence[int]], tokenizer: Any, colour: bool) -> Any:
    """Write a sequence as a `rich.text.Text`; without colours, brackets mark what is learned."""
    from rich.text import Text

    text = Text()
    for piece, learned in pieces(sequence, tokenizer):
        opening, closing = BRACKETS if learned and not colour else ("", "")
        text.append(f"{opening}{piece}{closing}", style=LEARNED if learned else "dim")
    return text


def histogram(lengths: Sequence[int], limit: int | None, bins: int = 10) -> list[str]:
    """Draw how long rows were before they were cut, in at most `bins` lines; a mark is behind lengths that are cut."""
    longest = max(lengths)
    width = max(-(-longest // bins), 1)
    counts = [0] * (-(-longest // width) or 1)
    for length in lengths:
        counts[max(length - 1, 0) // width] += 1
    most, digits = max(counts), len(f"{longest:,}")
    lines = []
    for index, count in enumerate(counts):
        low, high = index * width + 1, min((index + 1) * width, longest)
        bar = "█" * round(WIDTH * count / most) or ("▏" if count else "")
        cut = "  cut" if limit is not None and high > limit and count else ""
        lines.append(f"{low:>{digits},}–{high:<{digits},} {bar:<{WIDTH}} {count:,}{cut}")
    return lines


def summary(data: TrainingData, tokenizer: Any, limit: int | None) -> list[str]:
    """Sum up what is trained on, and what of the data is not used; `limit` is `training.max_length`."""
    facts = count_loss(sequences(data.train, limit), eos_token_ids(tokenizer))
    return [
        f"{facts.sequences:,} training sequences with {facts.tokens:,} tokens, of which {facts.learned:,} "
        f"({facts.learned / max(facts.tokens, 1):.1%}) carry loss; {data.held_out_total:,} held-out sequences",
        f"{_cut(data.counted, limit)}; with an EOS token that is learned: {facts.ending:,}",
        *(
            [f"held out, {_cut(data.counted_held_out, limit)}"]
            if data.counted_held_out.cut or data.counted_held_out.too_long
            else []
        ),
        *data.remarks.lines(),
        *data.remarks.unused_columns(),
    ]


def _cut(counted: Counted, limit: int | None) -> str:
    share = counted.cut / max(len(counted.lengths), 1)
    if counted.too_long:
        return (
            f"longer than {limit} tokens, and left out: {counted.too_long:,} of {len(counted.lengths):,} rows "
            f"({counted.too_long / len(counted.lengths):.1%})"
        )
    return (
        f"cut at {limit} tokens: {counted.cut:,} of {len(counted.lengths):,} rows ({share:.1%}); with nothing left to "
        f"learn, and left out: {counted.dropped:,}"
    )
