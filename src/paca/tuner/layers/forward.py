"""The forward pass of an adapted layer: the base layer's own, over a weight that holds columns, or beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from ...errors import PacaError
from ...method.columns.dequantized import DequantizedColumns
from ...method.columns.resident import PRETRAINED, Columns, Shown, Term
from ...method.columns.sharded import ShardedColumns, is_gathered, require_not_flattened, show_the_same
from ...method.functional.linear import partial_linear
from .writing import WAITING, WrittenLayer, columns_are_current


class ForwardLayer(WrittenLayer):
    """A layer that computes with its active adapters."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward, over the columns of the active adapters.

        Args:
            x: Input, shape `(..., in)`.
            *args: Passed on to the base layer.
            **kwargs: Likewise; `adapter_names`, one per row of `x`, mixes adapters in a batch.

        Returns:
            Shape `(..., out)`.
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if self._disable_adapters:
            if not torch.compiler.is_compiling():
                self.columns.take_out()  # a backward pass since may have shown its forward's columns again
            return self._forward_as_it_is(x, *args, **kwargs)
        if adapter_names is not None:
            return self._forward_mixed(x, adapter_names, *args, **kwargs)
        if self.merged_adapters:
            return self._forward_as_it_is(x, *args, **kwargs)
        terms = self._terms(self.active_adapters)
        if not self._weight_holds_columns():
            if self._gathered_with(terms):
                return self._forward_over(x, terms, *self._what_shows(), *args, **kwargs)
            return self._forward_beside(x, terms, *args, **kwargs)
        if not terms:
            if not torch.compiler.is_compiling():
                self.columns.take_out()
            return self._forward_as_it_is(x, *args, **kwargs)
        return self._forward_resident(x, terms, *args, **kwargs)

    def _run_base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the base layer computes from its weight as that is now."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        return y

    def _forward_resident(self, x: Tensor, terms: tuple[Term, ...], *args: Any, **kwargs: Any) -> Tensor:
        columns = shown = None
        grad = torch.is_grad_enabled()
        trains = grad and (terms[0].delta.requires_grad or any(term.delta.requires_grad for term in terms))
        if torch.compiler.is_compiling():
            columns_are_current()
        else:
            columns = self.columns
            shown = columns.show(terms, trains)
        if not (trains or (grad and (x.requires_grad or _requires_grad(self.base_layer._parameters.get("bias"))))):
            return self._run_base(x, *args, **kwargs)
        return self._forward_over(x, terms, columns, shown, *args, **kwargs)

    def _forward_as_it_is(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer over what its weight shows now, pretrained or merged; backward will find it again."""
        plain = torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad)
        if plain or not (self._weight_holds_columns() or isinstance(self.columns, ShardedColumns)):
            return self._run_base(x, *args, **kwargs)
        return self._forward_over(x, (), self.columns, self.columns.shown or PRETRAINED, *args, **kwargs)

    def _forward_over(
        self,
        x: Tensor,
        terms: tuple[Term, ...],
        columns: Columns | DequantizedColumns | None,
        shown: Shown | None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        base = self.base_layer
        if not has_hooks(base):
            return self._multiply(x, terms, columns, shown)
        with forward_replaced(base, lambda x: self._multiply(x, terms, columns, shown)):
            return base(x, *args, **kwargs)

    def _multiply(self, x: Tensor, terms: tuple[Term, ...], columns: Any, shown: Shown | None) -> Tensor:
        """`Y = X Wᵀ + b` over a weight with columns in it, differentiable in these."""
        return over_terms(x, self._matrix(), self.base_layer._parameters["bias"], terms, columns, shown)

    def _matrix(self) -> Tensor:
        """The base weight as a matrix of shape `(out, in)`; a view."""
        raise NotImplementedError

    def _forward_beside(self, x: Tensor, terms: tuple[Term, ...], *args: Any, **kwargs: Any) -> Tensor:
        """`Y = base(X) + Σ sₖ·X[..., Iₖ] Δₖᵀ`, for a base layer whose forward or weight is not its own."""
        if not torch.compiler.is_compiling():
            self.columns.take_out()  # the base layer may have been replaced while its weight showed columns
        y = self._run_base(x, *args, **kwargs)
        for term in terms:
            y = y + self._beside(x, term).to(y.dtype)
        return y

    def _beside(self, x: Tensor, term: Term) -> Tensor:
        part = x.index_select(-1, term.indices).to(term.delta.dtype)
        return nn.functional.linear(part, term.delta.to(part.device)) * term.scaling

    @torch.compiler.disable
    def _forward_mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Every row of the batch with an adapter of its own: the base GEMM once, each adapter beside it."""
        if len(adapter_names) != len(x):
            raise PacaError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(adapter_names)} "
                f"and {len(x)} respectively."
            )
        if isinstance(self.columns, ShardedColumns):
            raise PacaError(
                "adapter_names mixes adapters in one batch, which a model that FSDP2 has sharded cannot: its weights "
                "hold one adapter's columns at a time. Run such batches on the model as it was before fully_shard."
            )
        if self.merged_adapters:
            raise PacaError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        self.columns.take_out()
        y = self._forward_as_it_is(x, *args, **kwargs)
        for name in sorted(set(adapter_names)):
            for term in self._terms([name]):
                rows = torch.tensor([row for row, other in enumerate(adapter_names) if other == name], device=x.device)
                y = y.index_add(0, rows, self._beside(x.index_select(0, rows), term).to(y.dtype))
        self._follow_change()
        return y

    def _gathered_with(self, terms: tuple[Term, ...]) -> bool:
        """Whether FSDP2 has gathered the weight for this forward, from shards that hold the columns of these terms."""
        require_not_flattened(self.get_base_layer(), self.weight_name)
        if not self.reads_gathered or not is_gathered(self.get_base_layer(), self.weight_name):
            return False
        if torch.compiler.is_compiling():
            return isinstance(self.columns, ShardedColumns) and columns_are_current()
        shown = self.columns.shown
        if shown is None:
            WAITING.add(self)
            return False
        if not isinstance(self.columns, ShardedColumns):  # sharded while it showed columns, and gathered ever since
            WAITING.add(self)
        if not show_the_same(shown.terms, terms) or not self.columns.is_current():
            raise RuntimeError(
                "The adapter was changed while FSDP2 held its gathered weights, so these show columns of before. Call "
                "paca.sync(model) after a change that is no optimizer step, load or call of PEFT's."
            )
        return True

    def _what_shows(self) -> tuple[Any, Shown | None]:
        if torch.compiler.is_compiling() or not isinstance(self.columns, ShardedColumns):
            return None, None
        return self.columns, self.columns.shown


def over_terms(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, terms: tuple[Term, ...], columns: Any, shown: Shown | None
) -> Tensor:
    """`partial_linear` over the columns of some terms.

    Args:
        x: Input, shape `(..., in)`.
        weight: Shape `(out, in)`; None for a packed one.
        bias: Shape `(out,)`.
        terms: The adapters whose columns the weight holds.
        columns: Keeper of the columns.
        shown: What it shows.

    Returns:
        Shape `(..., out)`.
    """
    trained = [term for term in terms if not term.retired]
    indices, deltas, scalings = zip(*(term[:3] for term in trained), strict=True) if trained else ((), (), ())
    gathered = _gather_together(x, trained) if any(term.gather is not None for term in trained) else ()
    return partial_linear(x, weight, bias, indices, scalings, deltas, columns, shown, gathered)


def _gather_together(x: Tensor, terms: list[Term]) -> tuple[Tensor | None, ...]:
    """`X[..., I]` of the terms that share it with other layers; compiled code finds equal gathers by itself."""
    if torch.compiler.is_compiling():
        return ()
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    return tuple(
        term.gather(x, term.indices, dtype)
        if term.gather is not None and term.delta.requires_grad and torch.is_grad_enabled()
        else None
        for term in terms
    )


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after the module's forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._has_any_global_hook()
    )


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have `module(x)` call `forward(x)`, so that the module's hooks fire around it.

    Args:
        module: The module.
        forward: What it calls.

    Yields:
        None: Nothing.
    """
    module.__dict__["forward"] = forward  # as `module.forward = forward`, but its deletion can be compiled
    try:
        yield
    finally:
        del module.__dict__["forward"]
