"""What can be wrong with a selection, found before the model is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .selection.given import given_for, given_problem, layer_problem, read_given
from .selection.gradient import MODES
from .selection.groups import group_layers, same_input_groups
from .selection.registry import INDICES, strategy_problem

if TYPE_CHECKING:
    from .config import PacaConfig


def config_problems(config: PacaConfig) -> Iterator[str]:
    """What is wrong with the selection of a configuration, whatever the model is.

    Args:
        config: The configuration.

    Yields:
        str: One sentence per problem.
    """
    problem = strategy_problem(config.selection)
    if problem:
        yield problem
    if config.selection == INDICES and config.selection_indices is None:
        yield "selection='indices' needs the indices: pass selection_indices={'q_proj': [0, 5, 7], …}."
    if config.selection != INDICES and config.selection_indices is not None:
        yield f"selection_indices is given, but selection={config.selection!r}; pass selection='indices'."
    if config.selection_indices is not None and not isinstance(config.selection_indices, str):
        problem = given_problem(config.selection_indices)
        if problem:
            yield f"selection_indices: {problem}"
    yield from _run_problems(config)
    yield from _moving_problems(config)
    if not _is_positive(config.selection_batches):
        yield f"selection_batches={config.selection_batches!r} is not a whole number of 1 or more."
    if config.gradient_mode not in MODES:
        yield f"gradient_mode={config.gradient_mode!r} is unknown; pass one of {', '.join(map(repr, MODES))}."
    if not isinstance(config.aligned, bool) and not _are_groups(config.aligned):
        yield (
            f"aligned={config.aligned!r} is neither True, False nor a list of lists of layer names; pass for example "
            "[['q_proj', 'k_proj', 'v_proj']]."
        )


def _moving_problems(config: PacaConfig) -> Iterator[str]:
    every, warmup = config.reselect_every, config.reselect_warmup
    if every is None:
        if warmup:
            yield f"reselect_warmup={warmup!r} does nothing without reselect_every; pass reselect_every=20, say."
        return
    if not _is_positive(every):
        yield f"reselect_every={every!r} is not a whole number of 1 or more; leave it out for connections that stay."
    elif not isinstance(warmup, int) or not 0 <= warmup < every:
        yield f"reselect_warmup={warmup!r} has to be a whole number below reselect_every={every}, 0 for none."
    if config.selection == INDICES:
        yield "reselect_every needs a strategy to choose new connections by, and selection='indices' is none."


def _run_problems(config: PacaConfig) -> Iterator[str]:
    length = config.run_length
    if not _is_positive(length):
        yield f"run_length={length!r} is not a whole number of 1 or more."
        return
    if config.selection == INDICES and length > 1:
        yield f"run_length={length} does nothing with selection='indices', which says every connection; leave it out."
        return
    ranks = {"r": config.r, **{f"rank_pattern[{name!r}]": rank for name, rank in config.rank_pattern.items()}}
    for where, rank in ranks.items():
        if isinstance(rank, int) and rank % length:
            nearest = max(length, rank // length * length)
            yield f"{where}={rank} is no multiple of run_length={length}; pass {nearest}, or another run_length."


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_groups(groups: object) -> bool:
    return isinstance(groups, (list, tuple)) and all(
        isinstance(group, (list, tuple)) and all(isinstance(name, str) for name in group) for group in groups
    )


def layer_problems(config: PacaConfig, sizes: Mapping[str, int], ranks: Mapping[str, int]) -> list[str]:
    """What is wrong with the selection of a configuration on the layers of a model.

    Args:
        config: The configuration.
        sizes: How many connections each layer has, by name.
        ranks: Their ranks by name.

    Returns:
        One sentence per problem.
    """
    problems = []
    if config.selection == INDICES and config.selection_indices is not None:
        given = read_given(config.selection_indices)
        found = (layer_problem(given_for(given, name), name, size, ranks[name]) for name, size in sizes.items())
        problems += [problem for problem in found if problem]
    for name, size in sizes.items():
        whole = size // config.run_length * config.run_length
        if whole < ranks[name] <= size:
            problems.append(
                f"r={ranks[name]} does not fit {name} in runs of {config.run_length}: its {size} connections hold "
                f"{size // config.run_length} such runs. Pass r={whole} or less, or another run_length."
            )
        if config.reselect_every is not None and ranks[name] == size:
            problems.append(
                f"reselect_every={config.reselect_every} has nowhere to move in {name}: r={ranks[name]} trains all of "
                f"its {size} connections. Pass a smaller r, or leave reselect_every out."
            )
    for group in group_layers(sizes, same_input_groups(config.aligned)):
        if len({(sizes[name], ranks[name]) for name in group}) > 1:
            facts = ", ".join(f"{name} (r={ranks[name]} of {sizes[name]})" for name in group)
            problems.append(
                f"aligned: {facts} cannot share an index set; give them one rank, or leave their group out of aligned."
            )
    return problems
