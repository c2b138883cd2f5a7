"""Reasons why the weights in `target_parameters` cannot be adapted, and a warning of experts that nobody named."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ...errors import first_few
from ...method.columns.sharded import divided_problem
from ..layers.experts import Experts, expert_parameters, short_names, targeted_parameters, unknown_expert_parameters
from ..messages import near_names
from .checks import rank_problem


def parameter_problems(
    model: nn.Module, wanted: Iterable[str], ranks: Mapping[str, int], clamp_rank: bool = False
) -> list[str]:
    """Reasons why these fused expert weights cannot be adapted at these ranks, one line each.

    `wanted` is what `target_parameters` lists; with `clamp_rank`, a rank that is too large will be capped.
    """
    parameters = expert_parameters(model)
    names = {name.replace(".base_layer.", "."): parameter for name, parameter in model.named_parameters()}
    known = ", ".join(map(repr, short_names(parameters)))
    problems = []
    for target in sorted(wanted):
        if targeted_parameters(model, [target]):
            continue
        others = [name for name in names if name == target or name.endswith(f".{target}")]
        near = near_names(target, parameters)
        if others:
            reason = f"{others[0]} {tuple(names[others[0]].shape)} is no fused expert weight of a known layout."
        else:
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            reason = f"no parameter has that name{hint}"
        instead = (
            f"Those of this model are {known}." if known else "This model has none; name layers in target_modules."
        )
        problems.append(f"target_parameters: {target!r} cannot be adapted: {reason} {instead}")
    for name, rank in ranks.items():
        problem = divided_problem(model.get_submodule(name.rpartition(".")[0]))
        if problem:
            problems.append(f"target_parameters: {name} cannot be adapted: {problem}")
            continue
        connections = expert_connections(model, name, parameters[name])
        if rank > connections and not clamp_rank:
            problems.append(rank_problem(name, rank, connections, parameters[name].shape))
    adapted = _adapted(model)
    if ranks and adapted and set(ranks) != adapted:
        problems.append(
            "All adapters on expert weights have to name the same ones. Pass target_parameters="
            f"{short_names(sorted(adapted))}, as the first did."
        )
    return problems


def experts_left_out(model: nn.Module, config: Any, routers: set[str]) -> None:
    """Warn that `"all-linear"` means neither the experts, which are no linear layers, nor the routers."""
    experts = expert_parameters(model)
    left_out = [name for name in experts if name not in targeted_parameters(model, config.target_parameters or ())]
    unknown = unknown_expert_parameters(model)
    if not (left_out or routers or unknown):
        return
    adapted = f"target_modules='all-linear' adapts {len(config.target_modules)} linear layers"
    if config.target_parameters:
        adapted += f" and target_parameters {len(experts) - len(left_out)} expert weights"
    said = [f"{adapted}."]
    if left_out:
        share = sum(experts[name].numel() for name in left_out) / sum(p.numel() for p in model.parameters())
        said.append(
            f"{len(left_out)} fused expert weights ({100 * share:.0f} % of the model) are no linear layers and are "
            f"not adapted: to adapt all experts, pass target_parameters={short_names(experts)}."
        )
    if unknown:
        said.append(
            f"{len(unknown)} weights are left out because the layout of their experts is not known "
            f"({', '.join(short_names(unknown))}): to train some whole, name their modules in modules_to_save."
        )
    if routers:
        said.append(
            f"Routers are left alone ({first_few(sorted(routers), 2)}): to adapt them, list them in target_modules by "
            "name."
        )
    warnings.warn(" ".join(said), stacklevel=2)


def expert_connections(model: nn.Module, name: str, parameter: nn.Parameter) -> int:
    """How many connections a fused expert weight has, the same ones for every expert."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    module = module.get_base_layer() if isinstance(module, Experts) else module
    return parameter.shape[1 if module.is_transposed else 2]


def _adapted(model: nn.Module) -> set[str]:
    """The expert weights that have a layer, by their plain names."""
    layers = {id(module.base_weight) for module in model.modules() if isinstance(module, Experts)}
    return {name for name, parameter in expert_parameters(model).items() if id(parameter) in layers}
