"""A picture of what the memory goes into."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paca.training.files import write_file


def draw(path: Path, title: str, rows: Sequence[Mapping[str, Any]], limit: int | None) -> None:
    """Draw one stacked bar per method, and the GPU's memory as a line.

    Args:
        path: Where the PNG goes; replaced at once when it is complete.
        title: Above the bars.
        rows: With `method` and `by_category`.
        limit: The GPU's bytes; None if none was named.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = [row["method"] for row in rows]
    bottoms = [0.0] * len(rows)
    for category in rows[0]["by_category"]:
        heights = [row["by_category"][category] / 2**30 for row in rows]
        axes.bar(names, heights, bottom=bottoms, label=category, width=0.6)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    if limit is not None:
        axes.axhline(limit / 2**30, color="black", linestyle="--", linewidth=1, label="the GPU's memory")
    axes.set_ylabel("GiB at the peak of a step")
    axes.set_title(title)
    axes.legend()
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
