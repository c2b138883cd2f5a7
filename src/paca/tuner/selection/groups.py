"""Which layers read the same input, so that they can share one index set: query, key and value; gate and up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Last names of layers of one module that read one tensor, in the models of transformers.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)

Groups = Sequence[Sequence[str]]


def same_input_groups(aligned: bool | Groups) -> Groups:
    """The groups of last names that `PacaConfig(aligned=…)` means: the known ones, none, or the user's own."""
    if isinstance(aligned, bool):
        return SAME_INPUT if aligned else ()
    return aligned


def group_layers(names: Iterable[str], groups: Groups) -> list[list[str]]:
    """The layers, those of one module together whose last names are in one group; every layer is in one list."""
    number = {last: index for index, group in enumerate(groups) for last in group}
    found: dict[tuple[str, object], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        found.setdefault((parent, number.get(last, last)), []).append(name)
    return list(found.values())
