"""Leaves out of a method's fields what only says where its connections are."""

from collections.abc import Mapping
from typing import Any


def anywhere(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Remove config fields that need data, or another checkpoint, to find connections and their initial values.

    A step takes as many bytes and operations wherever its connections are: to count them, nothing has to be read.
    Removed are `column_source`, and a `selection` other than `indices`, which says how many there are.
    """
    left_out = {"column_source"} if fields.get("selection") == "indices" else {"column_source", "selection"}
    return {name: value for name, value in fields.items() if name not in left_out}
