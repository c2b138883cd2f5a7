"""Updates that are added to a base layer's output, where its weight can't hold their columns.

    Y = base(X) + Σ sₖ · X[..., Iₖ] Δₖᵀ

For a base layer with a forward of its own, for weights that engines take apart or put elsewhere or that other
processes share, and for a batch whose rows have different adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import PacaError
from ...method.columns.sharded import is_sharded
from ...method.columns.update import ColumnUpdate
from .hooks import call_over


def additive(layer: Any, updates: tuple[ColumnUpdate, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base layer's own forward, and the updates added to what it returns.

    Args:
        layer: The adapted layer.
        updates: What to add; nothing of what is merged.
        x: Input, shape `(..., in)`.
        *args: Passed on to the base layer.
        **kwargs: Likewise.

    Returns:
        Shape `(..., out)`.
    """
    if layer.is_flattened() and not torch.is_grad_enabled():  # rounded as without FSDP1
        return call_over(layer.base_layer, layer.weight_name, layer.weight_with(updates), x, *args, **kwargs)
    y = _base_forward(layer, x, *args, **kwargs)
    for update in () if layer.merged_adapters else updates:
        _require_tensor(layer, y)
        y = y + layer._additive(x, update).to(y.dtype)
    return y


def _require_tensor(layer: Any, y: Any) -> None:
    if not isinstance(y, Tensor):
        kind = type(layer.base_layer)
        raise PacaError(
            f"{kind.__module__}.{kind.__name__} returns a {type(y).__name__} from its forward, and an update can be "
            "added to a tensor only. Leave such layers out: pass exclude_modules with their names."
        )


def _base_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base layer's own forward, over its weight without columns."""
    base, weight = layer.base_layer, layer.plain_weight()
    loan = None
    if weight is not None and not torch.compiler.is_compiling():
        loan = layer.columns.lend(weight, layer.columns.merged)
    if loan is None:
        return base(x, *args, **kwargs)
    with loan as own:
        if own is weight:
            return base(x, *args, **kwargs)
        return call_over(base, layer.weight_name, own, x, *args, **kwargs)


@torch.compiler.disable
def mixed_batch(layer: Any, adapter_names: list[str], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Every row of the batch with an adapter of its own: the base GEMM once, each adapter's update added to its rows.

    Args:
        layer: The adapted layer.
        adapter_names: One per row; one that the layer doesn't have adds nothing.
        x: Input, shape `(rows, ..., in)`.
        *args: Passed on to the base layer.
        **kwargs: Likewise.

    Returns:
        Shape `(rows, ..., out)`.

    Raises:
        PacaError: If there are not as many names as rows, adapters are merged, or the weight is sharded.
    """
    if len(adapter_names) != len(x):
        raise PacaError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(adapter_names)} "
            f"and {len(x)} respectively."
        )
    if (
        is_sharded(layer.get_base_layer()._parameters.get(layer.weight_name))
        or layer.get_base_layer()._state_dict_pre_hooks
    ):
        raise PacaError(
            "adapter_names mixes adapters in one batch, which a model that FSDP2 has sharded cannot: its weights "
            "hold one adapter's columns at a time. Run such batches on the model as it was before fully_shard."
        )
    if layer.merged_adapters:
        raise PacaError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    y = layer.compute((), x, *args, **kwargs)
    for name in sorted(set(adapter_names)):
        for update in layer.updates([name]):
            _require_tensor(layer, y)
            rows = torch.tensor([row for row, other in enumerate(adapter_names) if other == name], device=x.device)
            y = y.index_add(0, rows, layer._additive(x.index_select(0, rows), update).to(y.dtype))
    return y
