"""A picture of which connections were chosen: layer × input feature, and what strategies have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.tuner.selection.overlap import overlap, overlap_by_chance
from paca.workbench.base.files import write_file

CELLS = 192  # the most cells that a heat map is wide; wider layers have several input features a cell


def draw_selection(path: Path, title: str, chosen: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> None:
    """Draw where the chosen connections fall.

    One row of heat maps per kind of layer (the last part of its name), one column per strategy, and where there are
    several a column that shows how many of them chose the same connection, and a table of what each two have in
    common.

    Args:
        path: Where the PNG goes; replaced at once when it is complete.
        title: Above it.
        chosen: Indices by layer, by strategy.
        sizes: How many connections each layer has.
    """
    from matplotlib.figure import Figure

    kinds = kinds_of_layers(sizes)
    several = len(chosen) > 1
    heights = [max(1.2, 0.05 * len(layers)) for layers in kinds.values()]
    width = 3.2 * (len(chosen) + several) + 0.8
    matrix_height = 0.5 * len(chosen) + 1.2 if several else 0
    figure = Figure(figsize=(max(width, 6), sum(heights) + 0.45 * len(kinds) + matrix_height + 0.6))
    figure.set_layout_engine("constrained")
    figure.suptitle(title)
    parts: Any = figure.subfigures(2, 1, height_ratios=[sum(heights), matrix_height]) if several else (figure, None)
    maps, table = parts
    axes = maps.subplots(len(kinds), len(chosen) + several, squeeze=False, height_ratios=heights)
    for row, (kind, layers) in zip(axes, kinds.items(), strict=True):
        _draw_kind(row, kind, layers, chosen, sizes)
    for bottom in axes[-1]:
        bottom.set_xlabel("input feature", fontsize=8)
    if table is not None:
        _draw_overlap(table.subplots(), chosen, sizes)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def kinds_of_layers(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Group layers that can share a heat map, those of one last name and one size, in the order of their first."""
    found: dict[tuple[str, int], list[str]] = {}
    for name, size in sizes.items():
        found.setdefault((name.rpartition(".")[2], size), []).append(name)
    return {f"{last} ({size:,} inputs)": names for (last, size), names in found.items()}


def counts(chosen: Mapping[str, Any], layers: list[str], size: int) -> Any:
    """How many chosen connections fall into each cell, shape `(layers, cells)`.

    There are at most `CELLS` cells, of equally many neighbouring connections of the `size` that each layer has.
    """
    import numpy as np

    each = -(-size // CELLS)
    return np.stack([np.bincount(chosen[name].numpy() // each, minlength=-(-size // each)) for name in layers])


def votes(chosen: Mapping[str, Mapping[str, Any]], layers: list[str], size: int) -> Any:
    """By how many strategies the connection of each cell was chosen that most of them chose.

    Shape `(layers, cells)`, as `counts` gives it.
    """
    import numpy as np

    each = -(-size // CELLS)
    cells = -(-size // each)
    found = np.zeros((len(layers), cells * each), dtype=int)
    for selection in chosen.values():
        for row, name in enumerate(layers):
            found[row, selection[name].numpy()] += 1
    return found.reshape(len(layers), cells, each).max(2)


def _draw_kind(
    row: Any,
    kind: str,
    layers: list[str],
    chosen: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
) -> None:
    size = sizes[layers[0]]
    found = {name: counts(selection, layers, size) for name, selection in chosen.items()}
    most = max(int(each.max()) for each in found.values())
    for axes, (name, cells) in zip(row, found.items(), strict=False):
        image = _heat_map(axes, cells, size, max(most, 1), "Blues")
        axes.set_title(f"{name}: {kind}", fontsize=8)
    each = -(-size // CELLS)
    _scale(row[: len(found)], image, "chosen" if each == 1 else f"chosen of {each}", max(most, 1))
    if len(chosen) > 1:
        image = _heat_map(row[-1], votes(chosen, layers, size), size, len(chosen), "Reds")
        row[-1].set_title("chosen by how many", fontsize=8)
        _scale(row[-1:], image, "strategies", len(chosen))
    row[0].set_ylabel("layer", fontsize=8)


def _heat_map(axes: Any, cells: Any, size: int, most: int, colours: str) -> Any:
    extent = (0, size, len(cells), 0)
    image = axes.imshow(cells, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=most, extent=extent)
    axes.tick_params(labelsize=7)
    axes.set_yticks([place + 0.5 for place in _few(len(cells))], [str(place) for place in _few(len(cells))])
    return image


def _few(number: int) -> range:
    """A few of the layers, to be named at the axis."""
    return range(0, number, max(-(-number // 8), 1))


def _scale(axes: Any, image: Any, label: str, most: int) -> None:
    """Draw what the colours of one row's maps stand for, from 0 to `most`."""
    ticks = range(0, most + 1, max(most // 4, 1))
    bar = axes[-1].figure.colorbar(image, ax=list(axes), ticks=ticks, pad=0.02)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _draw_overlap(axes: Any, chosen: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> None:
    names = list(chosen)
    shares = [[overlap(chosen[one], chosen[other]) for other in names] for one in names]
    axes.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect=0.5)
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            colour = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{share:.1%}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    chance = overlap_by_chance(chosen[names[0]], sizes)
    axes.set_title(f"connections in common, over all layers (by chance {chance:.1%})", fontsize=9)
