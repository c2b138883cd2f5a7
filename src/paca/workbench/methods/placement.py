"""Leaves out of a method's fields what only says where its connections are."""

from collections.abc import Mapping
from typing import Any


def anywhere(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Take out what needs data, or another checkpoint, to find connections and the values they start from.

    A step takes as many bytes and operations wherever its connections are: to count them, nothing has to be read.

    Args:
        fields: Of a method's configuration.

    Returns:
        The fields without `column_source`, and without a `selection` other than `indices`, which says how many there
        are.
    """
    left_out = {"column_source"} if fields.get("selection") == "indices" else {"column_source", "selection"}
    return {name: value for name, value in fields.items() if name not in left_out}
