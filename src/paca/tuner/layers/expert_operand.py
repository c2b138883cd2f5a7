"""Stands for a fused expert weight while its module's forward runs, whichever way that multiplies.

A module of transformers may take its experts one by one, gather one per row, or hand all of them to a grouped GEMM.
The operand answers each of these with the same product over the resident weight, differentiable in the adapted
columns alone. So the module's own forward runs, and the weight is neither parametrized nor copied.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import PacaError
from ...method.columns.update import ColumnUpdate
from ...method.functional.experts import Batched, Grouped, PartialExperts
from ...method.functional.linear import partial_linear

_MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
_BMMS = (torch.bmm, Tensor.bmm)


class AdaptedExperts:
    """A weight of several experts, with the columns that are in it.

    Args:
        weight: The weight.
        loan: Of the weight as `(experts, out, in)`.
        updates: What the columns are made of.
    """

    def __init__(self, weight: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> None:
        self.weight = weight
        self.loan = loan
        self.updates = [update for update in updates if not update.retired]
        self._of_experts: list[list[ColumnUpdate]] | None = None

    def one(self, x: Tensor, expert: int, bias: Tensor | None = None) -> Tensor:
        """All rows through one expert.

        Args:
            x: Shape `(..., in)`.
            expert: Its number.
            bias: Shape `(out,)`.

        Returns:
            Shape `(..., out)`.
        """
        if self._of_experts is None:  # taken apart once, so that backward puts the gradients together once
            deltas = [update.delta.unbind(0) for update in self.updates]
            self._of_experts = [
                [update._replace(delta=delta) for update, delta in zip(self.updates, of_expert, strict=True)]
                for of_expert in zip(*deltas, strict=True)
            ]
        updates = self._of_experts[expert] if self.updates else []
        return partial_linear(x, bias, self.loan.viewed(lambda weight: weight[expert]), updates)

    def each(self, x: Tensor, product: Grouped | Batched) -> Tensor:
        """Every row through an expert of its own.

        Args:
            x: Shape `(rows, in)`.
            product: Which row goes where, and the kernel.

        Returns:
            Shape `(rows, out)`.
        """
        indices = tuple(update.indices for update in self.updates)
        scalings = tuple(update.scaling for update in self.updates)
        deltas = (update.delta for update in self.updates)
        return PartialExperts.apply(x, product, self.loan.viewed(lambda weight: weight), indices, scalings, *deltas)


class ExpertOperand:
    """What a module's forward finds in place of its weight.

    Args:
        experts: The weight that it stands for.
        in_first: Whether the matrices are `(in, out)`.
        chosen: An expert's number, or the numbers of one per row; None for all.
    """

    def __init__(self, experts: AdaptedExperts, in_first: bool, chosen: int | Tensor | None = None) -> None:
        self.experts = experts
        self.in_first = in_first
        self.chosen = chosen

    def __getitem__(self, index: Any) -> ExpertOperand:
        if self.chosen is not None or isinstance(index, (tuple, slice, list)):
            raise _unknown(f"an index of type {type(index).__name__}")
        one = not isinstance(index, Tensor) or index.dim() == 0
        return ExpertOperand(self.experts, self.in_first, int(index) if one else index)

    def transpose(self, first: int, second: int) -> ExpertOperand:
        """The matrices transposed.

        Args:
            first: One of the last two dimensions.
            second: The other.

        Returns:
            Another operand.
        """
        dims = 2 if isinstance(self.chosen, int) else 3
        if {first % dims, second % dims} != {dims - 2, dims - 1}:
            raise _unknown(f"transpose({first}, {second})")
        return ExpertOperand(self.experts, not self.in_first, self.chosen)

    @property
    def mT(self) -> ExpertOperand:  # noqa: N802 - torch's name
        """The matrices transposed."""
        return self.transpose(-2, -1)

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "device", "requires_grad", "data_ptr"):  # asked before a kernel is chosen
            return getattr(self.experts.weight, name)
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unknown(f".{name}")

    def __rmatmul__(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self)  # type: ignore[arg-type, call-overload, no-any-return]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _product(function, list(args), dict(kwargs or {}))


def _product(function: Any, args: list[Any], options: dict[str, Any]) -> Tensor:
    """`function(*args, **options)`, one of whose arguments is an operand."""
    names = ("bias",) if function is F.linear else ("offs",)
    options.update(zip(names, args[2:], strict=False))
    left, right = args[0], _second(args, options)
    if isinstance(right, ExpertOperand) and not isinstance(left, ExpertOperand):
        experts, chosen = right.experts, right.chosen
        if isinstance(chosen, int):
            if function is F.linear and not right.in_first:
                return experts.one(left, chosen, options.get("bias"))
            if function in _MATMULS and right.in_first:
                return experts.one(left, chosen)
        elif chosen is not None and function in _BMMS and right.in_first and left.shape[1] == 1:
            return experts.each(left.squeeze(1), Batched(chosen)).unsqueeze(1)
        elif chosen is None and right.in_first and "grouped_mm" in str(getattr(function, "__name__", function)):
            return experts.each(left, Grouped(function, options["offs"]))
    elif (
        function in _BMMS
        and isinstance(left, ExpertOperand)
        and isinstance(left.chosen, Tensor)
        and not left.in_first
        and right.shape[-1] == 1
    ):
        return left.experts.each(right.squeeze(-1), Batched(left.chosen)).unsqueeze(-1)
    raise _unknown(getattr(function, "__name__", str(function)))


def _second(args: list[Any], options: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else options.get("weight", options.get("mat2"))


def _unknown(operation: str) -> PacaError:
    return PacaError(
        f"The experts' forward uses its weight in a way that PaCA does not know ({operation}), so its columns would "
        "get no gradient. Choose one of transformers' implementations "
        "(model.set_experts_implementation('grouped_mm')), or leave the experts out of target_parameters."
    )
