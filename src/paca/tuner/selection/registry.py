"""The selection strategies by name: each gives every connection of a layer a score, and the largest are trained.

Scores add up, over a run of connections and over layers that share an index set: they are squared norms, whose sum is
the squared norm of all these columns together. So runs and shared sets need no strategies of their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ...errors import PacaError
from .activation import statistic_scores, weight_activation_scores
from .facts import LayerFacts
from .random import random_scores
from .weight import smallest_weight_scores, weight_scores

INDICES = "indices"
DATA = ("activation", "gradient")


@dataclass(frozen=True)
class Strategy:
    """A way to choose connections.

    Args:
        name: What `PacaConfig(selection=…)` calls it.
        description: What it chooses, in one line.
        score: Returns one score per connection, shape `(in,)`; None where the user gives the connections.
        data: What it has to see first: `"activation"`, `"gradient"`, or None for nothing.
    """

    name: str
    description: str
    score: Callable[[LayerFacts], Tensor] | None
    data: str | None = None


_STRATEGIES: dict[str, Strategy] = {}


def register_selection(
    name: str, score: Callable[[LayerFacts], Tensor], description: str = "", data: str | None = None
) -> Strategy:
    """Register a strategy of your own, for `PacaConfig(selection=name)`.

        paca.register_selection("first", lambda facts: -torch.arange(facts.connections))

    An adapter stores the connections, not the strategy, so that loading it needs no registration.

    Args:
        name: A name that is not taken.
        score: Gets a `LayerFacts` and returns one number per connection, shape `(in,)`; the largest are chosen.
        description: What it chooses, in one line.
        data: `"activation"` or `"gradient"` to be given that statistic; None if it needs no data.

    Returns:
        The record.

    Raises:
        PacaError: If the name is taken, or an argument makes no sense.
    """
    if not isinstance(name, str) or not name:
        raise PacaError(f"register_selection: the name {name!r} is not a text; pass a name such as 'mine'.")
    if name in _STRATEGIES:
        raise PacaError(f"register_selection: the name {name!r} is taken ({_STRATEGIES[name].description}).")
    if not callable(score):
        raise PacaError(f"register_selection: the score {score!r} cannot be called; pass a function of a LayerFacts.")
    if data is not None and data not in DATA:
        raise PacaError(
            f"register_selection: data={data!r} is unknown; pass None or one of {', '.join(map(repr, DATA))}."
        )
    _STRATEGIES[name] = Strategy(name, description, score, data)
    return _STRATEGIES[name]


def strategies() -> Mapping[str, Strategy]:
    """All strategies by name, as a view that cannot be written to."""
    return MappingProxyType(_STRATEGIES)


def find_strategy(name: str) -> Strategy:
    """The strategy that `PacaConfig(selection=name)` means; an unknown name is an error that names the nearest."""
    problem = strategy_problem(name)
    if problem:
        raise PacaError(problem)
    return _STRATEGIES[name]


def strategy_problem(name: object) -> str | None:
    """What is wrong with the name of a strategy: a sentence, or None."""
    if isinstance(name, str) and name in _STRATEGIES:
        return None
    near = difflib.get_close_matches(str(name), _STRATEGIES, n=1)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    return (
        f"selection={name!r} is unknown; {hint} are {', '.join(map(repr, _STRATEGIES))}. Make one of your own known "
        "with paca.register_selection(name, score)."
    )


def scores_of(strategy: Strategy, facts: LayerFacts) -> Tensor:
    """A strategy's scores, checked: one finite number per connection; shape `(in,)`, float64, on the CPU."""
    if strategy.score is None:
        raise PacaError(f"{facts.name}: selection={strategy.name!r} has no scores.")
    scores = strategy.score(facts)
    what = f"{tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
    if not isinstance(scores, Tensor) or scores.shape != (facts.connections,):
        raise PacaError(
            f"selection={strategy.name!r} returned {what} for {facts.name}; it has to return a tensor with one score "
            f"per connection, of shape ({facts.connections},)."
        )
    if scores.is_complex() or not torch.isfinite(scores).all():
        raise PacaError(
            f"selection={strategy.name!r} returned scores for {facts.name} that are not finite numbers "
            f"({int((~torch.isfinite(scores)).sum())} of {facts.connections})."
        )
    return scores.detach().double().cpu()


for _strategy in (
    Strategy("random", "every connection is equally likely (the paper's default)", random_scores),
    Strategy("weight", "largest L2 norm of the pretrained column", weight_scores),
    Strategy("weight_smallest", "smallest L2 norm of the pretrained column", smallest_weight_scores),
    Strategy("gradient", "largest gradient, accumulated over batches", statistic_scores, "gradient"),
    Strategy("activation", "largest root mean square of the input channel", statistic_scores, "activation"),
    Strategy(
        "weight_activation",
        "largest column norm times root mean square of the input channel",
        weight_activation_scores,
        "activation",
    ),
    Strategy(INDICES, "those that selection_indices lists for each layer", None),
):
    _STRATEGIES[_strategy.name] = _strategy
