"""A plan as tables, and as a picture of what the memory goes into."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from paca.workbench.base.files import write_file
from paca.workbench.base.palette import KINDS
from paca.workbench.base.terminal import narrow_table
from paca.workbench.planning.gpus import Gpu

SHORT = {
    "parameters": "weights",
    "gradients": "grads",
    "optimizer": "optim",
    "activations": "kept",
    "temporaries": "temp",
}
_FAR_ABOVE = 2.5  # times the highest bar
SEARCHED = {"max_seq": "longest", "max_batch": "largest"}


def memory_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the peak of each method, in GiB."""
    paged = any(row["paged"] for row in rows)
    searched = [key for key in SEARCHED if key in rows[0]]
    heads = ["peak", *SHORT.values(), *(["paged"] if paged else []), *(["fits"] if "fits" in rows[0] else [])]
    table = narrow_table(title, [*heads, *(SEARCHED[key] for key in searched)])
    for row in rows:
        sizes = [row["total"], *(row["by_category"][name] for name in SHORT), *([row["paged"]] if paged else [])]
        fits = ["yes" if row["fits"] else "no"] if "fits" in row else []
        found = [f"{row[key]:,}" for key in searched]
        table.add_row(row["method"], *(f"{size / 2**30:.2f}" for size in sizes), *fits, *found)
    return table


def operations_table(rows: Sequence[Mapping[str, Any]], gpu: Gpu | None) -> Table:
    """Show the operations of each method's step, in 10¹², and the least time that a GPU of known rate takes."""
    phases = ["forward", "backward", "recompute", "optimizer", "total", "adapter"]
    if not any(row["operations"]["recompute"] for row in rows):
        phases.remove("recompute")
    bounded = gpu is not None and gpu.half is not None
    table = narrow_table("operations of a step, TFLOP", [*phases, *(["at least"] if bounded else [])])
    for row in rows:
        counts = [f"{row['operations'][phase] / 1e12:.4g}" for phase in phases]
        table.add_row(row["method"], *counts, *([f"{row['seconds_at_least'] * 1e3:,.1f} ms"] if bounded else []))
    if gpu is not None and bounded:
        table.caption = f"at least: at the peak rate of {gpu.name}, which no step reaches; a bound, not a forecast"
    return table


def where_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in which phase the peak of each method is, and which module runs then, where one does."""
    return [
        f"{row['method']}: peak in {row['phase']}" + (f" of {row['module']}" if row["module"] else "") for row in rows
    ]


def uncalled_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of which layers nothing is trained, since a step never calls them."""
    return [
        f"{row['method']}: {len(row['uncalled'])} layers are never called, and not counted as trained: "
        f"{', '.join(sorted({_kind(name) for name in row['uncalled']}))}"
        for row in rows
        if row["uncalled"]
    ]


def _kind(name: str) -> str:
    """A layer's name without the numbers of blocks: `visual.blocks.*.attn.qkv`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def draw(path: Path, title: str, rows: Sequence[Mapping[str, Any]], limit: int | None) -> None:
    """Draw one stacked bar per method, and the GPU's memory in bytes as a line, if one was named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = [row["method"] for row in rows]
    bottoms = [0.0] * len(rows)
    for category in rows[0]["by_category"]:
        heights = [row["by_category"][category] / 2**30 for row in rows]
        label, tint = KINDS.get(category, (category, None))
        axes.bar(names, heights, bottom=bottoms, label=label, color=tint, width=0.6)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, height in enumerate(bottoms):
        axes.text(place, height, f"{height:.1f}", ha="center", va="bottom")
    _draw_limit(axes, max(bottoms), None if limit is None else limit / 2**30)
    axes.set_ylabel("GiB at the peak of a step")
    axes.set_title(title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def _draw_limit(axes: Any, highest: float, limit: float | None) -> None:
    """Draw the GPU's memory as a line, or say where it would be: so far above the bars it would press them flat."""
    top = max(highest, limit or 0.0)
    if limit is not None and limit > _FAR_ABOVE * highest:
        top = highest
        text = f"↑ the GPU's memory: {limit:,.0f} GiB"
        axes.text(0.5, 0.97, text, transform=axes.transAxes, ha="center", va="top")
    elif limit is not None:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1, label="the GPU's memory")
    axes.set_ylim(top=1.25 * top if top < (limit or 0) else 1.12 * top)
