"""Resident columns of a weight that is sharded over ranks: FSDP2 (`fully_shard`).

FSDP2 divides every parameter on its first dimension. A weight `(out, in)` and an update `Δ` `(out, r)` are cut at the
same rows, so each rank has just what it needs to write its rows of the columns:

    W_rank[:, I] = W₀_rank[:, I] + s·Δ_rank

No rank asks another. When a layer's turn comes, FSDP2 gathers the whole weight, columns included, and the forward runs
over it as over any other. What differs from a whole weight is the moment: columns must be in the shards before they
are gathered, so they are written as soon as something changes, never in the middle of a forward or a backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PacaError
from .resident import Columns, Kept, Shown, Term, adapted_columns, connection_union, connections_first


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


def require_not_flattened(module: nn.Module, name: str) -> None:
    """Refuse FSDP1, which puts all parameters of a block end to end and cuts the row where it likes.

    On one process with `use_orig_params` it cuts nothing; there the update is computed beside the base layer.

    Args:
        module: An adapted base layer.
        name: Its parameter that holds columns.

    Raises:
        PacaError: If FSDP1 manages it and divides its parameters; says what to use instead.
    """
    wrapped = type(module).__name__ == "FullyShardedDataParallel"
    managed = "_fsdp_use_orig_params" in module.__dict__ and _ranks() > 1  # FSDP2 says so as well
    if wrapped or (managed and not is_sharded(module._parameters.get(name)) and not _hooked(module)):
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


def show_the_same(shown: tuple[Term, ...], terms: tuple[Term, ...]) -> bool:
    """Whether terms are those that shards show, now that their deltas are gathered and so are other tensors.

    Args:
        shown: The terms of the shards.
        terms: The terms of a forward.

    Returns:
        Whether connections and scalings agree.
    """
    return len(shown) == len(terms) and all(
        one.indices is other.indices and one.scaling == other.scaling for one, other in zip(shown, terms, strict=True)
    )


def reshard(module: nn.Module) -> None:
    """Have FSDP2 put a module's shards in the place of gathered parameters.

    It promises that a module's state dict holds the shards, and reshards for it.

    Args:
        module: A module that owns parameters; nothing happens to one that FSDP2 does not manage.
    """
    module.state_dict(keep_vars=True)


class ShardedColumns(Columns):
    """Keeps this rank's rows of the columns of a sharded weight.

    Args:
        weight: The shards as one `DTensor`, divided on dimension 0.
        connection_dim: Its dimension that counts connections; not 0.
        delta_dim: The dimension of the deltas that does; not 0.
    """

    eager = True

    @property
    def rows(self) -> Tensor:
        """The memory of this rank's shard, connections first."""
        return connections_first(_local(self.weight), self.connection_dim)

    def show(self, terms: tuple[Term, ...], train: bool = False) -> Shown:
        """As a whole weight's; deltas that are divided in another way can't be shown, nothing is shown then.

        Args:
            terms: The adapters to show, at least one.
            train: Whether the deltas are being trained; it makes no difference here.

        Returns:
            The record of what the weight now shows.
        """
        if not all(self._fits(term.delta) for term in terms):
            self.take_out()
            return Shown((), ())
        return super().show(terms)

    def show_again(self, shown: Shown | None) -> None:
        """Check that the weight still holds what it held in an earlier forward; it can't be written in backward.

        Args:
            shown: What it showed then.

        Raises:
            RuntimeError: If it shows something else now.
        """
        now = self.shown
        if shown is None or shown is now or (not shown.terms and now is None):
            return
        if now is None or now.key != shown.key:
            raise RuntimeError(
                "The columns that this forward pass used were changed before its backward pass (another adapter, "
                "disable_adapter, an optimizer step or a load in between). The weight is sharded and is gathered for "
                "backward as it is now, so the gradients would be wrong. Call backward() first."
            )

    def take_over(self, old: Columns) -> None:
        """Go on for the keeper of the weight that these shards were cut from.

        If that showed columns at the time, the shards hold them: the pretrained values go back into this rank's rows,
        or are kept for `unmerge` if the columns were merged.

        Args:
            old: That keeper.
        """
        if old.shown is None or old.kept is None:
            return
        values = old.kept.values if isinstance(old, ShardedColumns) else self._own_rows(old.kept.values)
        kept = Kept(old.kept.indices, values)
        if old.pinned:
            self.adopt(kept, old.shown)
        else:
            self.rows.index_copy_(0, kept.indices.to(values.device), kept.values)

    def hand_out(self, alias: Tensor) -> None:
        """Promise that `alias`, which shares the shard's memory, keeps the pretrained values.

        Args:
            alias: A sharded tensor over the whole weight, taken while nothing was shown.
        """
        super().hand_out(_local(alias))

    def pretrained_copy(self) -> Tensor:
        """A sharded copy of the weight with the pretrained values; the weight stays as it is."""
        copy = self.weight.detach().clone()
        if self.shown is not None and self.kept is not None:
            rows = connections_first(_local(copy), self.connection_dim)
            rows.index_copy_(0, self.kept.indices.to(rows.device), self.kept.values)
        return copy

    def pretrained_columns(self, indices: Tensor) -> Tensor:
        """As a whole weight's; a collective call, for the columns are gathered from all ranks.

        Args:
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, …)`, the same on every rank.
        """
        copy: Any = self.pretrained_copy()
        if self.connection_dim == 0:
            return copy.full_tensor().index_select(0, indices.to(copy.device))
        return self._whole(self._select(copy, indices))

    def would_show(self, terms: tuple[Term, ...]) -> Tensor:
        """This rank's rows of the values that `show` would write.

        Args:
            terms: The adapters.

        Returns:
            Shape `(n, …)`, for the union of their connections.
        """
        indices = connection_union(terms)
        pretrained = self._select(self.pretrained_copy(), indices)
        return adapted_columns(pretrained, indices, self._own(terms), self.delta_dim)

    def _select(self, weight: Tensor, indices: Tensor) -> Tensor:
        """This rank's rows of some columns of a sharded tensor like the weight, connections first."""
        local = _local(weight)
        return connections_first(local, self.connection_dim).index_select(0, indices.to(local.device))

    def _whole(self, rows: Tensor) -> Tensor:
        """Columns put together from every rank's rows of them, connections first."""
        from torch.distributed.tensor import DTensor

        weight: Any = self.weight
        own = rows.movedim(0, self.connection_dim).contiguous()
        shape = [*weight.shape]
        shape[self.connection_dim] = len(rows)
        stride = torch.empty(shape, device="meta").stride()
        whole = DTensor.from_local(
            own, weight.device_mesh, weight.placements, run_check=False, shape=torch.Size(shape), stride=stride
        )
        return connections_first(whole.full_tensor(), self.connection_dim)

    def _own(self, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        device = _local(self.weight).device
        return tuple(term._replace(delta=_local(term.delta), indices=term.indices.to(device)) for term in terms)

    def _own_rows(self, values: Tensor) -> Tensor:
        """This rank's part of whole columns, connections first."""
        from torch.distributed.tensor import distribute_tensor

        weight: Any = self.weight
        whole = values.movedim(0, self.connection_dim).to(_local(weight).device)
        part = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        return connections_first(_local(part), self.connection_dim).clone()

    def _fits(self, delta: Any) -> bool:
        weight: Any = self.weight
        return (
            is_sharded(delta)
            and 0 not in (self.connection_dim, self.delta_dim)
            and not any(placement.is_shard() and not placement.is_shard(0) for placement in weight.placements)
            and delta.placements == weight.placements
            and delta.device_mesh == weight.device_mesh
            and _local(delta).device == _local(weight).device
        )


@torch.no_grad()
def _local(tensor: Any) -> Tensor:
    """This rank's part, the memory itself and not a view that autograd knows of."""
    return tensor.to_local()
