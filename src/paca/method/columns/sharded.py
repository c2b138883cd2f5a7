"""Weights that FSDP2 (`fully_shard`) has sharded over ranks.

FSDP2 cuts every parameter on its first dimension, a weight `(out, in)` and an update `Δ` `(out, r)` at the same rows,
and gathers both when a layer's turn comes. The gathered copies are the call's own: columns are put into them for a
product (`MomentaryLoan`) and into the shards never, so that these are pretrained whatever runs. Merging alone writes
into shards, each rank its own rows:

    W_rank[:, I] = W₀_rank[:, I] + s·Δ_rank
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PacaError
from .resident import Columns
from .update import ColumnUpdate, connections_first


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a rank's part of a larger one (a `DTensor`)."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def is_gathered(module: nn.Module, name: str) -> bool:
    """Whether a parameter is one that FSDP2 has gathered from shards, for as long as it is needed.

    Args:
        module: Its owner.
        name: Its name there.

    Returns:
        Whether FSDP2 manages the module and the parameter is whole.
    """
    return type(module._parameters.get(name)) is nn.Parameter and _hooked(module)


def divided_problem(module: nn.Module) -> str | None:
    """Why a layer that was divided before it was adapted can't be.

    Args:
        module: A base layer.

    Returns:
        A sentence that says what to do instead; None for a layer that is whole on every rank.
    """
    divided: list[Any] = [parameter for parameter in module._parameters.values() if is_sharded(parameter)]
    planned = getattr(module.__dict__.get("forward"), "__module__", "").startswith("transformers.distributed.")
    if planned or any("tp" in (parameter.device_mesh.mesh_dim_names or ()) for parameter in divided):
        return (
            "tensor parallelism (tp_plan) has planned it; of what that plans, nn.Linear layers that are colwise or "
            "rowwise can be adapted, and nothing else. Leave it out, or load the model without tp_plan, put the "
            "adapter on, and shard with FSDP2."
        )
    if not divided:
        return None
    return (
        "its weight is divided over ranks already, so that its update would be trained on each rank apart. Call "
        "get_peft_model first and fully_shard after it."
    )


def is_flattened(module: nn.Module, name: str) -> bool:
    """Whether a parameter is one of those that FSDP1 has put end to end with all others of a block.

    Args:
        module: Its owner.
        name: Its name there.

    Returns:
        True of one that FSDP1 manages.
    """
    managed = "_fsdp_use_orig_params" in module.__dict__  # FSDP2 says so as well
    return managed and not is_sharded(module._parameters.get(name)) and not _hooked(module)


def require_not_flattened(module: nn.Module, name: str) -> None:
    """Refuse FSDP1, which cuts the row of flattened parameters where it likes.

    On one process with `use_orig_params` it cuts nothing.

    Args:
        module: An adapted base layer.
        name: Its parameter that holds columns.

    Raises:
        PacaError: If FSDP1 manages it and divides its parameters; says what to use instead.
    """
    wrapped = type(module).__name__ == "FullyShardedDataParallel"
    if wrapped or (is_flattened(module, name) and _ranks() > 1):
        raise PacaError(
            "FSDP1 flattens parameters (FullyShardedDataParallel, fsdp_version: 1): a rank holds stretches of a layer "
            "in which neither columns nor their updates can be found. Shard with FSDP2 instead: fsdp_version: 2 in "
            "accelerate's fsdp_config, or torch.distributed.fsdp.fully_shard."
        )


def _ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _hooked(module: nn.Module) -> bool:
    """Whether FSDP2 reshards the module for its state dicts."""
    return any("fsdp" in hook.__module__ for hook in module._state_dict_pre_hooks.values())


def reshard(module: nn.Module) -> None:
    """Have FSDP2 put a module's shards in the place of gathered parameters.

    It promises that a module's state dict holds the shards, and reshards for it.

    Args:
        module: A module that owns parameters; nothing happens to one that FSDP2 does not manage.
    """
    module.state_dict(keep_vars=True)


class ShardedColumns(Columns):
    """The columns of a weight that FSDP2 has sharded, for what is not a forward: merging, reading, checking.

    Args:
        connection_dim: The weight's dimension that counts connections; not 0.
        delta_dim: The dimension of the updates that does; not 0.
    """

    def rows(self, weight: Any) -> Tensor:
        """The memory of this rank's shard, connections first."""
        return connections_first(_local(weight), self.connection_dim)

    def parts(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> tuple[ColumnUpdate, ...]:
        """This rank's rows of the updates, which are cut where the weight is."""
        for update in updates:
            self._require_fit(weight, update.delta)
        device = _local(weight).device
        return tuple(
            update._replace(delta=_local(update.delta), indices=update.indices.to(device)) for update in updates
        )

    def pretrained_columns(self, weight: Any, indices: Tensor) -> Tensor:
        """As a whole weight's; a collective call, for the columns are gathered from all ranks.

        Args:
            weight: The shards as one `DTensor`.
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, …)`, the same on every rank.
        """
        if self.connection_dim == 0:
            return weight.full_tensor().index_select(0, indices.to(weight.device))
        return self._whole(weight, super().pretrained_columns(weight, indices))

    def _whole(self, weight: Any, rows: Tensor) -> Tensor:
        """Columns put together from every rank's rows of them, connections first."""
        from torch.distributed.tensor import DTensor

        own = rows.movedim(0, self.connection_dim).contiguous()
        shape = [*weight.shape]
        shape[self.connection_dim] = len(rows)
        stride = torch.empty(shape, device="meta").stride()
        whole = DTensor.from_local(
            own, weight.device_mesh, weight.placements, run_check=False, shape=torch.Size(shape), stride=stride
        )
        return connections_first(whole.full_tensor(), self.connection_dim)

    def _require_fit(self, weight: Any, delta: Any) -> None:
        if (
            is_sharded(delta)
            and 0 not in (self.connection_dim, self.delta_dim)
            and not any(placement.is_shard() and not placement.is_shard(0) for placement in weight.placements)
            and delta.placements == weight.placements
            and delta.device_mesh == weight.device_mesh
        ):
            return
        raise PacaError(
            "FSDP2 has sharded a weight and its update in different ways, so that a rank does not have the rows of "
            "the one that belong to its rows of the other. Give both to the same fully_shard call: shard the adapted "
            "layer or a block around it, never its base_layer alone."
        )


def own_rows(weight: Any, kept: tuple[Tensor, Tensor], connection_dim: int) -> tuple[Tensor, Tensor]:
    """This rank's part of what was kept of a whole weight, after FSDP2 has sharded that.

    Args:
        weight: The shards as one `DTensor`.
        kept: Connections, and their values, connections first.
        connection_dim: The weight's dimension that counts connections.

    Returns:
        The connections, and this rank's rows of the values.
    """
    from torch.distributed.tensor import distribute_tensor

    indices, values = kept
    whole = values.movedim(0, connection_dim).to(_local(weight).device)
    part = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
    return indices, connections_first(_local(part), connection_dim).clone()


@torch.no_grad()
def _local(tensor: Any) -> Tensor:
    """This rank's part, the memory itself and not a view that autograd knows of."""
    return tensor.to_local()
