"""Which layers `layers_to_transform="upper-half"` leaves: those of the upper half of a model's blocks, and beyond.

Backward ends at the lowest layer that is trained. So a step over the upper half is forward and half of backward, and
what the lower half would keep for backward is never kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

from ...errors import PacaError, first_few
from ..config import UPPER_HALF


def upper_half(model: nn.Module, names: Collection[str]) -> set[str]:
    """Those of some layers that are in the upper half of the blocks, or come after all blocks.

    Blocks are what one list of modules has, told by the first number in a layer's name: `3` in
    `model.layers.3.mlp.experts.0.up_proj`. Of an odd number of blocks the one in the middle belongs to the upper half.

    Args:
        model: The base model.
        names: Full names of layers or of fused expert weights.

    Returns:
        Some of the names.

    Raises:
        PacaError: If the layers are in no list of blocks, or in several.
    """
    lists = {found for name in names if (found := _list_of(name)) is not None}
    if len(lists) != 1:
        where = f"in {len(lists)} lists of blocks ({first_few(sorted(lists), 5)})" if lists else "in no list of blocks"
        raise PacaError(
            f"layers_to_transform={UPPER_HALF!r}: the layers to adapt are {where}, and a half can be told of one list "
            "alone. Name the layers in target_modules, or leave those of other lists out with exclude_modules."
        )
    (blocks,) = lists
    children = [name for name, _ in model.get_submodule(blocks).named_children()]
    order = [name for name, _ in model.named_modules()]
    first = order.index(f"{blocks}.{children[len(children) // 2]}".removeprefix("."))
    upper = set(order[first:])
    return {name for name in names if name in upper or name.rpartition(".")[0] in upper}


def _list_of(name: str) -> str | None:
    """The name of the list that has the block of a layer, empty for the model itself; None if it is in no block."""
    found = re.match(r"(?:(.*?)\.)?\d+(?:\.|$)", name)
    return None if found is None else found[1] or ""
