"""PaCA on linear layers that tensor parallelism has divided over ranks (transformers' `tp_plan`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PacaError
from ...method.columns.sharded import divided_problem, is_sharded
from ...method.columns.tensor_parallel import TensorParallelColumns, is_tensor_parallel, layout_problem
from ...method.columns.update import ColumnUpdate
from ...method.functional.tensor_parallel import with_divided_gradient
from .linear import Linear


class TensorParallelLinear(Linear):
    """`nn.Linear` of which each rank holds a part; a connection is an input feature of the whole layer.

    The base layer's forward is transformers', which moves inputs and outputs between ranks. It runs as it is, over a
    weight that holds the columns.
    """

    columns: TensorParallelColumns

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why a divided layer cannot be adapted as it is.

        Args:
            base: The layer.

        Returns:
            A sentence, or None if it can.
        """
        if type(base).forward is not nn.Linear.forward or not base.weight.is_floating_point():
            return divided_problem(base)
        return layout_problem(base.weight)

    def _new_columns(self) -> TensorParallelColumns:
        return TensorParallelColumns()

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, its update divided over ranks.

        Args:
            adapter_name: Its name.
            *args: As any layer's.
            **kwargs: Likewise.
        """
        super().update_layer(adapter_name, *args, **kwargs)
        delta = self.paca_delta[adapter_name]
        self.paca_delta[adapter_name] = nn.Parameter(self._divided(delta.detach()), delta.requires_grad)

    def _divided(self, delta: Tensor) -> Tensor:
        """This rank's rows of an update that every rank has whole."""
        from torch.distributed.tensor import Shard, distribute_tensor

        return distribute_tensor(delta, self.base_weight.device_mesh, [Shard(0)], src_data_rank=None)

    def move_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Refused.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.

        Raises:
            PacaError: Always.
        """
        raise PacaError(
            "The connections of layers that tensor parallelism has divided stay what they are. Leave reselect_every "
            "out of PacaConfig, or load the model without tp_plan."
        )

    def holds_columns(self) -> bool:
        """Whether the base layer multiplies with a weight that columns can be put into.

        Returns:
            True.

        Raises:
            PacaError: If something else has taken the place of the divided weight.
        """
        weight = self.base_weight
        if not is_tensor_parallel(weight) or layout_problem(weight):
            raise PacaError(
                "The weight of a layer that tensor parallelism has divided was replaced after it was adapted, as "
                "fully_shard does. Use one of both: load the model without tp_plan to shard it with FSDP2."
            )
        return True

    @torch.compiler.disable
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As any layer's; never compiled, as columns may have to be gathered before it.

        Args:
            x: Input, shape `(..., in)`, or what this rank has of it.
            *args: Passed on to the base layer.
            **kwargs: Likewise.

        Returns:
            Shape `(..., out)`, or this rank's part of it.
        """
        if kwargs.get("adapter_names") is not None:
            raise PacaError(
                "adapter_names mixes adapters in one batch, which a model that tensor parallelism has divided cannot: "
                "its weights hold one adapter's columns at a time. Pass rows with the same adapter together, after "
                "set_adapter, or load the model without tp_plan."
            )
        return self.compute(self.updates(), x, *args, **kwargs)

    def compute(self, updates: tuple[ColumnUpdate, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward with some updates, whose columns are in the weight.

        Args:
            updates: The updates; none for the pretrained layer.
            x: Input, shape `(..., in)`, or what this rank has of it.
            *args: Passed on to the base layer.
            **kwargs: Likewise.

        Returns:
            Shape `(..., out)`, or this rank's part of it.
        """
        self.holds_columns()
        loan, weight = self.lend(updates), self.base_weight

        def forward(x: Tensor) -> Tensor:
            return self.base_layer(x, *args, **kwargs)

        if self._is_differentiated(x, updates):
            return with_divided_gradient(x, forward, self.columns, weight, loan, updates)
        with loan:
            return forward(x)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """As any layer's; whole updates in the state dict are divided first.

        Args:
            state_dict: Of the whole model; its entries are replaced.
            prefix: This layer's name in it.
            *args: Passed on.
            **kwargs: Likewise.
        """
        entries: Any = state_dict
        for name in self.paca_delta:
            key = f"{prefix}paca_delta.{name}"
            if key in entries and not is_sharded(entries[key]):
                entries[key] = self._divided(entries[key].to(self.weight_device()))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
