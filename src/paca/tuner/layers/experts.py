"""PaCA on the fused expert weights of transformers 5: 3-D parameters `(experts, out, in)` of one module.

A connection is an input feature, the same `I` for every expert. They are named in `target_parameters`. Each adapted
parameter has a layer of its own around the experts' module; two of one module are nested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ...errors import PacaError
from ...method.columns.lease import Lease
from ...method.columns.sharded import is_gathered
from ...method.columns.update import ColumnUpdate
from ...method.functional.linear import require_frozen
from .base import PLAIN, PacaLayer
from .expert_operand import AdaptedExperts, ExpertOperand

# Those of transformers' implementations that multiply with the weight in PyTorch, where columns can get a gradient.
TRAINABLE_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


class Experts(PacaLayer):
    """One fused weight of an experts' module, with adapted columns.

    Args:
        base_layer: The experts' module, or this layer around it for another of its weights.
        parameter_name: The weight's name in the module.
    """

    delta_dim = 2
    converts_to_lora = False

    def __init__(self, base_layer: nn.Module, parameter_name: str) -> None:
        inner = base_layer.get_base_layer() if isinstance(base_layer, PacaLayer) else base_layer
        self.weight_name = parameter_name
        self.in_first = bool(inner.is_transposed)
        super().__init__(base_layer)

    def _features(self) -> tuple[int, int]:
        _, out, into = self._as_out_in(self.base_weight).shape
        return into, out

    def _as_out_in(self, weight: Tensor) -> Tensor:
        return weight.transpose(1, 2) if self.in_first else weight

    @property
    def connection_dim(self) -> int:  # type: ignore[override]
        """The dimension of the weight that counts connections."""
        return 1 if self.in_first else 2

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        return len(self.base_weight), self.out_features, r

    @torch.compiler.disable
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The experts' own forward, over the columns of the active adapters on any of the module's weights.

        A stand-in of the module finds in place of its weights what multiplies with their columns, so that nobody else
        who calls the module meanwhile gets these.

        Args:
            hidden_states: Shape `(tokens, in)`.
            *args: Passed on: which experts each token goes to, and their weights.
            **kwargs: Likewise.

        Returns:
            Shape `(tokens, in)`.

        Raises:
            PacaError: If rows are to get different adapters, or the module's implementation cannot be trained.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise PacaError(
                "`adapter_names` cannot mix adapters in a batch here: an adapter is on expert weights, which all rows "
                "share. Run one batch per adapter, with set_adapter before each."
            )
        module = self.get_base_layer()
        updates = {layer: layer.updates() for layer in self._nested()}
        trainable = self._implementation() in TRAINABLE_IMPLEMENTATIONS
        in_place: dict[str, Any] = {}
        with ExitStack() as stack:
            for layer in updates:
                if not layer.holds_columns():
                    layer._refuse(updates[layer])
                    continue
                loan = layer.lend_own()
                if torch.is_grad_enabled() and (updates[layer] or trainable):
                    in_place[layer.weight_name] = ExpertOperand(layer._adapted(loan, updates[layer]), layer.in_first)
                    continue
                weight = stack.enter_context(loan)
                if weight is not layer.base_weight:
                    in_place[layer.weight_name] = weight
            return (_stand_in(module, in_place) if in_place else module)(hidden_states, *args, **kwargs)

    def _nested(self) -> list[Experts]:
        """The layers around the module, this one first."""
        layers: list[Experts] = []
        layer: Any = self
        while isinstance(layer, Experts):
            layers.append(layer)
            layer = layer.base_layer
        return layers

    def _adapted(self, loan: Any, updates: tuple[ColumnUpdate, ...]) -> AdaptedExperts:
        if self._implementation() not in TRAINABLE_IMPLEMENTATIONS:
            raise PacaError(
                f"The experts' implementation {self._implementation()!r} gives no gradient for columns. Before "
                "training call model.set_experts_implementation('grouped_mm'); others that can be trained: "
                f"{', '.join(map(repr, TRAINABLE_IMPLEMENTATIONS))}."
            )
        require_frozen(self.base_weight)
        return AdaptedExperts(self.base_weight, loan.viewed(self._as_out_in), updates)

    def _refuse(self, updates: tuple[ColumnUpdate, ...]) -> None:
        if updates:
            raise PacaError(
                f"The expert weight {self.weight_name} was replaced after it was adapted (by offloading or sharding), "
                "so it cannot hold its columns. Keep the experts on one device, or leave them out of "
                "target_parameters."
            )

    def _implementation(self) -> str:
        module: Any = self.get_base_layer()
        return getattr(module.config, "_experts_implementation", None) or "eager"

    def holds_columns(self) -> bool:
        """Whether the experts' module multiplies with a weight that columns can be put into."""
        module = self.get_base_layer()
        weight = module._parameters.get(self.weight_name)  # none where something computes it anew
        return (
            "forward" not in module.__dict__
            and type(weight) in PLAIN
            and not hasattr(weight, "ds_id")
            and not is_gathered(module, self.weight_name)
        )

    def lend(self, updates: tuple[ColumnUpdate, ...], lease: Lease | None = None) -> Any:
        """As any layer's, of a weight of the innermost module."""
        return self.columns.lend(self.base_weight, updates, lease=lease)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """As `Attention`'s: the experts' module, with the adapters of all its weights merged or taken out."""
        for layer in self._nested() if merge else ():
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self.get_base_layer()


def _stand_in(module: nn.Module, attributes: dict[str, Any]) -> nn.Module:
    """A module that is `module`, but for some attributes; an instance's own come before its parameters."""
    stand_in = module.__class__.__new__(module.__class__)
    stand_in.__dict__ = {**module.__dict__, **attributes}
    return stand_in


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds fused experts whose layout is known: transformers' `use_experts_implementation` tells.

    Args:
        module: Any module.

    Returns:
        Whether it does.
    """
    return not isinstance(module, BaseTunerLayer) and all(
        hasattr(module, fact) for fact in ("is_transposed", "has_gate", "num_experts", "config")
    )


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The fused expert weights of a model.

    Args:
        model: The model, adapted or not.

    Returns:
        The 3-D parameters by the names that they have in the plain model, `model.layers.0.mlp.experts.down_proj`.
    """
    found = {}
    for module_name, module in model.named_modules():
        if not is_experts(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and parameter.is_floating_point():
                found[f"{_plain_name(module_name)}.{name}".removeprefix(".")] = parameter
    return found


def unknown_expert_parameters(model: nn.Module) -> list[str]:
    """The 3-D weights that experts seem to have, but whose layout nothing tells, as those of Llama 4.

    Args:
        model: The model, adapted or not.

    Returns:
        Their names.
    """
    known = {id(parameter) for parameter in expert_parameters(model).values()}
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and "expert" in name and ".paca_" not in name and id(parameter) not in known
    ]


def router_names(model: nn.Module) -> set[str]:
    """The linear layers that choose the experts: one output per expert, beside an experts' module of any layout.

    Args:
        model: The model, adapted or not.

    Returns:
        Their names.
    """
    counts = {name: module.num_experts for name, module in model.named_modules() if is_experts(module)}
    for parameter in unknown_expert_parameters(model):
        counts[parameter.rpartition(".")[0]] = len(model.get_parameter(parameter))
    found = set()
    for module_name, experts in counts.items():
        block_name = _plain_name(module_name).rpartition(".")[0]
        for name, layer in model.get_submodule(block_name).named_modules():
            if isinstance(layer, nn.Linear) and layer.out_features == experts and "expert" not in name:
                found.add(f"{block_name}.{name}".removeprefix("."))
    return found


def targeted_parameters(model: nn.Module, target_parameters: Iterable[str]) -> list[str]:
    """The expert weights that names in `target_parameters` mean, whole or at their end.

    Args:
        model: The model.
        target_parameters: The names.

    Returns:
        Full names in the plain model, in the model's order.
    """
    wanted = tuple(f".{target}" for target in target_parameters)
    return [name for name in expert_parameters(model) if f".{name}".endswith(wanted)]


def short_names(names: Iterable[str]) -> list[str]:
    """What to type in `target_parameters` for all of these: their names after the block's number.

    Args:
        names: Full names of parameters.

    Returns:
        Each once, in order.
    """
    return list(dict.fromkeys(re.split(r"\.\d+\.", name)[-1] for name in names))


def add_experts_adapter(model: nn.Module, name: str) -> Experts:
    """The layer of an expert weight; put in place if there is none yet.

    Args:
        model: The model.
        name: The weight's name in the plain model.

    Returns:
        The layer.
    """
    module_name, _, parameter_name = name.rpartition(".")
    parent_name, _, child_name = module_name.rpartition(".")
    parent = model.get_submodule(parent_name)
    outermost = getattr(parent, child_name)
    layer = outermost
    while isinstance(layer, Experts):
        if layer.weight_name == parameter_name:
            return layer
        layer = layer.base_layer
    layer = Experts(outermost, parameter_name)
    setattr(parent, child_name, layer)
    return layer


def _plain_name(module_name: str) -> str:
    """A module's name without the layers around it."""
    return re.sub(r"\.base_layer(?=\.|$)", "", module_name)
