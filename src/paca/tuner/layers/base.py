"""`PacaLayer`: what every adapted layer is, whatever kind of layer it wraps.

It runs the base layer's own forward while the weight holds the columns of the active adapters. Between calls the base
weight is the pretrained one, for everyone. A kind of layer adds the few facts in which it differs; see `linear.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ...errors import PacaError
from ...method.columns.layout import ConnectionMajorParameter, lay_out_row_major
from ...method.columns.lease import Lease, Loan, Stay, make_pretrained, plainly
from ...method.columns.resident import Columns
from ...method.columns.retired import RetiredColumns, move
from ...method.columns.sharded import (
    ShardedColumns,
    divided_problem,
    is_flattened,
    is_gathered,
    is_sharded,
    own_rows,
    require_not_flattened,
)
from ...method.columns.shared_gather import SharedGather
from ...method.columns.update import ColumnUpdate
from ...method.functional.linear import require_frozen
from ..selection import random_connections
from .additive import additive, mixed_batch
from .connection_dict import ConnectionDict
from .hooks import call_in_place_of, has_hooks

# Weights in memory of their own, not shards or quantized tensors. Fake tensors stand for them in `paca plan`.
PLAIN = (nn.Parameter, ConnectionMajorParameter, FakeTensor)


class PacaLayer(nn.Module, BaseTunerLayer):  # in this order, or fully_shard could not change its class
    """A base layer and the adapters on it.

    Per adapter: `paca_delta` `(out, r)`, trained, the update `Δ` of the selected columns; `paca_indices` `(r,)`,
    the selected connections, saved with the adapter.

    Args:
        base_layer: The layer to adapt; it stays in place as `base_layer`, with its weight.
    """

    base_layer: Any
    get_base_layer: Callable[[], Any]
    active_adapters: list[str]
    _active_adapter: str | list[str]

    adapter_layer_names = ("paca_delta",)
    other_param_names: tuple[str, ...] = ("r", "paca_alpha", "scaling", "paca_indices", "retired", "gathers")

    connection_dim: ClassVar[int]  # the dimension of the base weight that counts connections
    delta_dim: ClassVar[int] = 1  # the dimension of `paca_delta` that does
    reads_features_last: ClassVar[bool] = False  # whether the input is (..., in) and a product with the weight
    trained_whole: ClassVar[bool] = False  # whether all connections are trained, whatever the rank
    converts_to_lora: ClassVar[bool] = True  # PEFT's conversion is one of matrices that a layer multiplies with
    weight_name = "weight"  # the base layer's parameter that holds the columns
    weight_dims: ClassVar[tuple[int, ...]] = (2,)  # how many dimensions it may have
    base_forward: ClassVar[Callable[..., Any] | None] = None  # the only one that columns can take the place of, if so

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.paca_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.paca_delta = nn.ParameterDict({})
        self.paca_indices = ConnectionDict()
        self.gathers: dict[str, SharedGather] = {}  # of adapters that share their connections with other layers
        self.retired: dict[str, RetiredColumns] = {}  # of adapters whose connections have moved
        self.in_features, self.out_features = self._features()
        self.columns = self._new_columns()
        self._for_call: Stay | None = None  # this layer's part of the last call of a whole model
        self.merged_adapters: list[str] = []
        self._written_over: Any = None  # by merged adapters: their connections, and the pretrained values
        self._remerge: list[str] = []
        self._disable_adapters = False

    # What a kind of layer says of itself.

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why a base layer of this kind cannot be adapted as it is: a sentence, or None if it can."""
        weight = base._parameters.get(cls.weight_name)
        if weight is None:
            return "its weight is computed anew in each forward (a parametrization, such as weight_norm)."
        if isinstance(weight, nn.UninitializedParameter):
            return "its weight has no shape yet; run the model once first."
        if not weight.is_floating_point():
            return f"its weight is {weight.dtype}, in which no column can be trained."
        if weight.dim() not in cls.weight_dims:
            return f"its weight has the shape {tuple(weight.shape)}, which is not this layer's own."
        return divided_problem(base)

    @classmethod
    def _forward_problem(cls, base: Any, known: str, trained: str) -> str | None:
        """Why a base layer whose class isn't known cannot be adapted: it may do more than what is known of it."""
        if cls.knows(type(base)):
            return None
        return (
            f"{type(base).__module__}.{type(base).__name__} does more in its forward than {known}, so trained "
            f"{trained} would not be used as they are. Leave it out with exclude_modules."
        )

    @classmethod
    def connections(cls, base: Any) -> int:
        """How many connections a base layer of this kind has, the largest rank."""
        return base._parameters[cls.weight_name].shape[cls.connection_dim]

    @classmethod
    def knows(cls, base_class: Any) -> bool:
        """Whether layers of this class compute what this kind does, and nothing else."""
        return cls.base_forward is None or base_class.forward is cls.base_forward

    def _features(self) -> tuple[int, int]:
        """The base weight's connections and the length of one: `(in, out)`."""
        raise NotImplementedError

    def _new_columns(self) -> Any:
        return Columns(self.connection_dim, self.delta_dim)

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        return self.out_features, r

    def _delta_dtype(self) -> torch.dtype:
        """The dtype of new updates, before PEFT casts them."""
        return self.base_weight.dtype

    def _weight_shape(self) -> torch.Size:
        return self.base_weight.shape

    def weight_device(self) -> torch.device:
        """Where the base weight is."""
        return self.base_weight.device

    @property
    def base_weight(self) -> Any:
        """The base layer's parameter that holds the columns."""
        base: Any = self._modules["base_layer"]
        weight = base._parameters.get(self.weight_name)  # nn.Module's own look-up costs more than a write
        return getattr(self.get_base_layer(), self.weight_name) if weight is None else weight

    def parts(self, name: str) -> list[tuple[str, PacaLayer]]:
        """The adapted layers that an adapter on this one consists of, each with the name of its weight's owner."""
        return [(name, self)]

    # Computing.

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward, over the columns of the active adapters.

        Args:
            x: Input, shape `(..., in)`.
            *args: Passed on to the base layer.
            **kwargs: Likewise; `adapter_names`, one per row of `x`, mixes adapters in a batch.

        Returns:
            Shape `(..., out)`.
        """
        if kwargs:
            names = kwargs.pop("adapter_names", None)
            if names is not None and not self._disable_adapters:
                return mixed_batch(self, names, x, *args, **kwargs)
        stay = None if torch.compiler.is_compiling() else self._for_call
        if stay is None or not stay.is_pinned_here():
            return self.compute(self.updates(), x, *args, **kwargs)
        # Within a call of a whole model all has been looked at, and the columns are in the weight.
        updates = stay.updates
        if self._is_differentiated(x, updates):
            return self._differentiated(Loan(stay.lease(), stay), updates, x, *args, **kwargs)
        return self._run_base(x, *args, **kwargs)

    def _run_base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward, over its weight as it is now."""
        return self._modules["base_layer"](x, *args, **kwargs)  # type: ignore[misc]

    def compute(self, updates: tuple[ColumnUpdate, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward with some updates.

        Args:
            updates: The updates; none for the pretrained layer.
            x: Input, shape `(..., in)`.
            *args: Passed on to the base layer.
            **kwargs: Likewise.

        Returns:
            Shape `(..., out)`.
        """
        if not self.holds_columns():
            return additive(self, updates, x, *args, **kwargs)
        if torch.compiler.is_compiling():
            weight, updates = self.base_weight, () if self.merged_adapters else updates
            require_frozen(weight)
            return call_in_place_of(self.base_layer, lambda x: self._multiply(x, weight, updates), x, *args, **kwargs)
        loan = self.lend(updates)
        if loan is None:
            return additive(self, updates, x, *args, **kwargs)
        if not self._is_differentiated(x, updates):
            with loan as weight:
                if weight is self.base_weight:
                    return self._run_base(x, *args, **kwargs)
        require_frozen(self.base_weight)
        # In backward the weight has to be what it is now; and another thread's columns may be in it.
        return self._differentiated(loan, updates, x, *args, **kwargs)

    def _differentiated(
        self, loan: Any, updates: tuple[ColumnUpdate, ...], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        base: Any = self._modules["base_layer"]
        if has_hooks(base):
            return call_in_place_of(base, lambda x: self._multiply(x, loan, updates), x, *args, **kwargs)
        return self._multiply(x, loan, updates)

    def _multiply(self, x: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        """What the base layer computes, over a weight with columns in it, differentiable in these."""
        raise NotImplementedError

    def _additive(self, x: Tensor, update: ColumnUpdate) -> Tensor:
        """What an update adds to the base layer's output: `s · X[..., I] Δᵀ`."""
        part = x.index_select(-1, update.indices).to(update.delta.dtype)
        return nn.functional.linear(part, update.delta.to(part.device)) * update.scaling

    def updates(self, adapter_names: list[str] | None = None) -> tuple[ColumnUpdate, ...]:
        """What adapters add to the weight.

        Args:
            adapter_names: The adapters; None for what the next forward uses.

        Returns:
            One update per adapter that this layer has, and one for its retired columns.
        """
        if adapter_names is None:
            if self.merged_adapters:
                return self.columns.merged
            if self._disable_adapters:
                return ()
            adapter_names = self.active_adapters
        # Straight to the dictionaries: this is on the path of every forward, and nn.Module's look-ups add up.
        modules: dict[str, Any] = self._modules
        deltas, indices = modules["paca_delta"]._parameters, modules["paca_indices"]._buffers
        found = []
        for name in adapter_names:
            if name in deltas:
                delta = deltas[name]
                found.append(ColumnUpdate(indices[name], delta, self.scaling[name], gather=self.gathers.get(name)))
                if name in self.retired and len(self.retired[name].indices):
                    below = self.retired[name]
                    found.append(ColumnUpdate(below.indices, below.delta, self.scaling[name], retired=True))
        return tuple(found)

    def holds_columns(self) -> bool:
        """Whether the base layer computes what this kind computes, from a weight that columns can be put into.

        Not so for a subclass with a forward of its own, and where an engine replaces forward or weight (accelerate's
        offloading, FSDP1, ZeRO-3). There the update is added to the base layer's output.
        """
        base: Any = self._modules["base_layer"]
        weight = base._parameters.get(self.weight_name)
        return (
            type(weight) in PLAIN
            and "forward" not in base.__dict__
            and self.knows(type(base))
            and not hasattr(weight, "ds_id")
            and ("_fsdp_use_orig_params" not in base.__dict__ or is_gathered(base, self.weight_name))
        )

    def plain_weight(self) -> Any:
        """The base weight, if it is one in memory of its own that columns can be in; else None."""
        weight = self.get_base_layer()._parameters.get(self.weight_name)
        return weight if type(weight) in PLAIN and not weight.is_meta and not hasattr(weight, "ds_id") else None

    def lend(self, updates: tuple[ColumnUpdate, ...], lease: Lease | None = None) -> Any:
        """Have the columns of some updates in the weight, for the products of a forward and of its backward.

        Args:
            updates: The updates; none for the pretrained weight.
            lease: What the columns are to be a part of.

        Returns:
            A loan; None if the weight's memory may not be written.
        """
        base: Any = self._modules["base_layer"]
        return self.columns.lend(
            self.base_weight,
            updates,
            lease=lease,
            train=(True if _trains(updates) else None) if self.training else False,
            momentary=bool(base._state_dict_pre_hooks) and is_gathered(base, self.weight_name),
        )

    def lend_own(self) -> Any:
        """`lend` what the next forward uses, for a layer that cannot do without.

        Returns:
            A loan.

        Raises:
            PacaError: If the weight's memory may not be written.
        """
        loan = self.lend(self.updates())
        if loan is None:
            raise PacaError(
                f"{self.weight_name} of {type(self.base_layer).__name__} lies in memory that other processes share, "
                "so it cannot hold trained columns. Give the layer memory of its own (weight.data = "
                "weight.data.clone()), or leave it out with exclude_modules."
            )
        return loan

    @property
    def weight(self) -> Any:
        """The weight as this layer multiplies with it: PyTorch's fused transformer layers read it themselves.

        The base weight within a call that has its columns in it, else a copy with them.
        """
        weight, updates = self.base_weight, self.updates()
        if torch.compiler.is_compiling() or self.merged_adapters or not updates:
            return weight
        if not self.holds_columns():
            return self.weight_with(updates) if self.is_flattened() else weight
        if self.columns.is_in(weight) or self._waits_for_values(updates):
            return weight
        with self.lend_own() as adapted:
            return adapted.clone()

    def weight_with(self, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        """A copy of the base weight with the columns of some updates in it."""
        return Stay(Lease(), self.columns, self.base_weight, updates).private_copy()

    def is_flattened(self) -> bool:
        """Whether FSDP1 keeps the base weight, on one process, where it leaves it whole.

        Returns:
            True where it does.

        Raises:
            PacaError: If it divides the weight over several.
        """
        require_not_flattened(self.get_base_layer(), self.weight_name)
        return is_flattened(self.get_base_layer(), self.weight_name)

    def lend_for_call(self, lease: Lease) -> Lease | None:
        """Have the columns in the weight for a call of the whole model.

        Args:
            lease: What they become a part of, unless they are in the weight under another.

        Returns:
            The lease under which they are; None if they can't be there before this layer's turn.
        """
        own = self.__dict__  # as in `set_adapter`
        own["_for_call"] = None
        base: Any = self._modules["base_layer"]
        if base._state_dict_pre_hooks or not self.holds_columns():
            return None
        weight, updates = self.base_weight, self.updates()
        if weight.requires_grad or self._waits_for_values(updates):
            return None
        loan = self.lend(updates, lease)
        if not isinstance(loan, Loan):
            return None
        own["_for_call"] = loan.stay
        return loan.lease

    def is_in_call(self) -> bool:
        """Whether this thread is within a call of the whole model that has this layer's columns in the weight."""
        return self._for_call is not None and self._for_call.is_pinned_here()

    def _waits_for_values(self, updates: tuple[ColumnUpdate, ...]) -> bool:
        """Whether the weight or an update is on the meta device, for a load that follows."""
        return self.base_weight.is_meta or bool([update for update in updates if update.delta.is_meta])

    def _is_differentiated(self, x: Tensor, updates: tuple[ColumnUpdate, ...]) -> bool:
        if not torch.is_grad_enabled():
            return False
        if x.requires_grad or [update for update in updates if update.delta.requires_grad]:
            return True
        bias = self._modules["base_layer"]._parameters.get("bias")  # type: ignore[union-attr]
        return bias is not None and bias.requires_grad

    # Adapters.

    def update_layer(
        self, adapter_name: str, r: int, paca_alpha: float, seed: int | None = None, init_weights: bool = True
    ) -> None:
        """Add an adapter, with connections of its own.

        Args:
            adapter_name: Its name.
            r: How many connections it trains, at most `in_features`.
            paca_alpha: Its updates are scaled by `paca_alpha / r`.
            seed: Seed of the random selection; None draws from torch's global generator.
            init_weights: Start from zero updates, that is, from the pretrained model. False starts from random ones,
                for tests.

        Raises:
            PacaError: If `r` is not in `1 … in_features`.
        """
        if not 0 < r <= self.in_features:
            raise PacaError(f"r={r} does not fit a layer with {self.in_features} connections: pass 1 to that many.")
        self.r[adapter_name] = r
        self.paca_alpha[adapter_name] = paca_alpha
        self.scaling[adapter_name] = paca_alpha / r
        self.paca_indices[adapter_name] = random_connections(self.in_features, r, seed)
        self.paca_delta[adapter_name] = nn.Parameter(torch.zeros(self._delta_shape(r), dtype=self._delta_dtype()))
        if not init_weights:
            nn.init.normal_(self.paca_delta[adapter_name], std=0.1)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's, less its cast: a loaded update keeps the precision of its file, and its `requires_grad`."""
        if adapter_name not in self.paca_delta:
            return
        delta = self.paca_delta[adapter_name]
        device = self.weight_device() if device is None else device
        if delta.device in (device, torch.device("meta")):
            return
        self.paca_delta[adapter_name] = nn.Parameter(delta.detach().to(device), requires_grad=delta.requires_grad)
        self.paca_indices[adapter_name] = self.paca_indices[adapter_name].to(device)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's, by one look at each update: a server switches among many adapters, and each layer has all of them.

        Args:
            adapter_names: The adapters that are active from now on. Their updates are trained, those of others not.
            inference_mode: Have none trained.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        deltas: Any = self._modules["paca_delta"]
        for name, delta in deltas._parameters.items():
            is_trained = name in names and not inference_mode
            if delta.requires_grad != is_trained and delta.is_leaf:  # views of FSDP1 are not
                delta.requires_grad_(is_trained)
        own = self.__dict__  # nn.Module's own assignment looks through all its dictionaries first
        own["_for_call"], own["_active_adapter"] = None, names

    def delete_adapter(self, adapter_name: str) -> None:
        self._for_call = None
        self._remerge = [name for name in self._remerge if name != adapter_name]
        super().delete_adapter(adapter_name)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling to `scale · alpha / r`; a layer without the adapter is left alone."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.paca_alpha[adapter] / self.r[adapter]

    def scale_layer(self, scale: float) -> None:
        """Multiply the active adapters' scaling."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`: divide by the factor, or go back to `alpha / r` without one."""
        for name in self.active_adapters:
            if name in self.scaling:
                plain = self.paca_alpha[name] / self.r[name]
                self.scaling[name] = plain if scale is None else self.scaling[name] / scale

    def set_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Train other connections from now on; the updates stay what they are.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.
        """
        self.paca_indices[adapter_name] = indices.to(self.paca_indices[adapter_name].device)

    def copy_updates(self, adapter_name: str, source: str) -> None:
        """Give an adapter the updates of another one with the same connections."""
        trained = self.paca_delta[adapter_name].requires_grad
        self.paca_delta[adapter_name] = nn.Parameter(self.paca_delta[source].detach().clone(), requires_grad=trained)
        if source in self.retired:
            self.retired[adapter_name] = self.retired[source]

    def move_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Train other connections from now on; those trained so far keep their updates.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.
        """
        delta, old = self.paca_delta[adapter_name], self.paca_indices[adapter_name]
        new = indices.to(old.device)
        values, self.retired[adapter_name] = move(
            delta.detach(), old, new, self.retired.get(adapter_name), self.delta_dim
        )
        with torch.no_grad():
            delta.copy_(values)
        self.paca_indices[adapter_name] = new

    def visited(self, adapter_name: str) -> Tensor:
        """The connections visited in the current sweep over all of them, shape `(n,)`."""
        retired = self.retired.get(adapter_name)
        return self.paca_indices[adapter_name] if retired is None else retired.visited

    def whole_update(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """All connections that an adapter has changed, and their updates.

        Args:
            adapter_name: The adapter.

        Returns:
            Indices, ascending, shape `(n,)`, and updates of the shape that `paca_delta` has at rank `n`,
            differentiable in it.
        """
        indices, delta = self.paca_indices[adapter_name], self.paca_delta[adapter_name]
        retired = self.retired.get(adapter_name)
        return (indices, delta) if retired is None else retired.joined(indices, delta, self.delta_dim)

    def pretrained_columns(self, indices: Tensor) -> Tensor:
        """The pretrained values of some connections, connections first, also while adapters are merged.

        Args:
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, …)`.
        """
        with self._unmerged() as columns:
            return columns.pretrained_columns(self.base_weight, indices)

    def trained_from(self, adapter_name: str) -> tuple[Tensor, bool]:
        """The pretrained columns that an adapter's updates are added to.

        Args:
            adapter_name: The adapter.

        Returns:
            The columns, connections first, and whether a quantization has rounded them.
        """
        return self.pretrained_columns(self.whole_update(adapter_name)[0]), False

    # Merging.

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update `s·Δ`, zero in all columns but the adapter's.

        Args:
            adapter: Its name.

        Returns:
            A tensor of the base weight's shape, in the dtype of `Δ`.
        """
        indices, delta = self.whole_update(adapter)
        return self._dense(indices, delta * self.scaling[adapter])

    def _dense(self, indices: Tensor, update: Tensor) -> Tensor:
        """An update as a change of the whole weight."""
        zeros = update.new_zeros(self._weight_shape())
        return zeros.index_copy(self.connection_dim, indices, update.movedim(self.delta_dim, self.connection_dim))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make the adapters' columns part of the base weight, for everyone who looks at it.

        Merging one after the other equals merging all at once: the sum is taken from the pretrained values.

        Args:
            safe_merge: Check first that all merged values are finite.
            adapter_names: The adapters; None merges the active ones.

        Raises:
            PacaError: If `safe_merge` finds a value that is not finite; nothing was changed then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.paca_delta]
        if not names:
            return
        merged = [*self.merged_adapters, *names]
        self.check_merge(names, safe_merge)
        self._unmerge_updates()
        self._merge_updates(self.updates(merged))
        self.merged_adapters = merged

    def unmerge(self) -> None:
        """Put the pretrained values back, bit for bit."""
        self._remerge = []
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters = []
        self._unmerge_updates()

    def _merge_updates(self, updates: tuple[ColumnUpdate, ...]) -> None:
        """Have the base weight hold these updates, and no others, until `_unmerge_updates`."""
        weight = self.base_weight
        lay_out_row_major(weight)
        self._written_over = self._columns_of(weight).write(weight, updates)
        self.columns.merged = updates

    def _unmerge_updates(self) -> None:
        """Make the base weight the pretrained one."""
        weight, kept = self.base_weight, self._written_over
        if kept is not None:
            make_pretrained(weight)
            self._columns_of(weight).restore(weight, self._own_rows(kept))
        self._written_over, self.columns.merged = None, ()

    def _columns_of(self, weight: Any) -> Any:
        """What reads and writes the weight of now, which FSDP2 may have sharded."""
        sharded = is_sharded(weight) and type(self.columns) is Columns
        return ShardedColumns(self.connection_dim, self.delta_dim) if sharded else self.columns

    def _own_rows(self, kept: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What was kept of a whole weight, as the weight of now needs it."""
        weight = self.base_weight
        whole = kept[1].shape[1:] == self._columns_of(weight).rows(weight).shape[1:]
        return kept if whole else own_rows(weight, kept, self.connection_dim)

    @contextmanager
    def _unmerged(self) -> Iterator[Any]:
        """Have the weight hold its pretrained values for now, although adapters are merged."""
        weight, kept = self.base_weight, self._written_over
        columns = self._columns_of(weight)
        if kept is None:
            yield columns
            return
        indices, pretrained = self._own_rows(kept)
        merged = columns.rows(weight).index_select(0, indices)
        columns.restore(weight, (indices, pretrained))
        try:
            yield columns
        finally:
            columns.restore(weight, (indices, merged))

    def check_merge(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """All that `merge` checks, without merging.

        Args:
            adapter_names: The adapters that would be merged; None takes the active ones.
            safe_merge: Whether merged values have to be finite.
        """
        if safe_merge:
            self.check_finite(adapter_names)

    def check_finite(self, adapter_names: list[str] | None = None, dtype: torch.dtype | None = None) -> None:
        """Check that all merged values would be finite.

        Args:
            adapter_names: The adapters that would be merged; None takes the active ones.
            dtype: In which; None for the base weight's own.

        Raises:
            PacaError: If a merged value would not be finite.
        """
        names = [name for name in adapter_names or self.active_adapters if name not in self.merged_adapters]
        updates = self.updates([*self.merged_adapters, *names])
        columns = self._would_be(updates) if updates else torch.empty(0)
        columns = columns if dtype is None else columns.to(dtype)
        if not columns.isfinite().all():
            raise PacaError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: it holds "
                f"NaN or infinite values, or values beyond {columns.dtype}. Nothing was merged."
            )

    def _would_be(self, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        with self._unmerged() as columns:
            return columns.would_be(self.base_weight, updates)

    def enable_adapters(self, enabled: bool) -> None:
        """Use the adapters, or the pretrained layer; merged ones are unmerged meanwhile and merged again after.

        Args:
            enabled: Whether the adapters take part.
        """
        if not enabled:
            self._remerge = self._remerge or list(self.merged_adapters)
            self.merged_adapters = []
            self._unmerge_updates()
            self.give_back()  # the layout of training too, over which products are rounded differently
        super().enable_adapters(enabled)
        if enabled and self._remerge:
            names, self._remerge = self._remerge, []
            self.merge(adapter_names=names)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can make a LoRA of an adapter; of a linear layer, `s·Δ` at `r` columns is one of rank `r`."""
        return self.converts_to_lora

    # What others do with the whole module. Columns that are in the weight for a backward pass that is still to come
    # are taken out for it; that pass puts them in again.

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        make_pretrained(self.plain_weight())
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        make_pretrained(self.plain_weight())
        super()._load_from_state_dict(*args, **kwargs)

    def give_back(self) -> None:
        """Have the base weight be as if it had never been adapted, memory layout included; merged columns stay."""
        make_pretrained(self.plain_weight())
        lay_out_row_major(self.plain_weight())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PacaLayer:
        self.give_back()
        super()._apply(fn, recurse)
        self.retired = {name: retired.moved(fn) for name, retired in self.retired.items()}
        if isinstance(self._written_over, tuple):
            self._written_over = tuple(fn(tensor) for tensor in self._written_over)
        return self

    def __getstate__(self) -> dict[str, Any]:
        make_pretrained(self.plain_weight())
        return {**self.__dict__, "_for_call": None}

    def __repr__(self) -> str:
        return "paca." + super().__repr__()


def _trains(updates: tuple[ColumnUpdate, ...]) -> bool:
    return torch.is_grad_enabled() and bool([update for update in updates if update.delta.requires_grad])


@contextmanager
def columns_in(layers: tuple[PacaLayer, ...]) -> Iterator[None]:
    """Have the columns of many layers in their weights during a call.

    Each layer would put in its own when its turn comes. But between the layers' products that work stalls the GEMM
    threads, and costs several times what it costs in one go.

    Args:
        layers: The layers.
    """
    if torch.compiler.is_compiling() or all(layer.is_in_call() for layer in layers):
        yield
        return
    lease = Lease()
    leases = {id(lease): lease.__enter__()}
    try:
        with plainly(), lease.together():
            for layer in layers:
                other = layer.lend_for_call(lease)
                if other is not None and id(other) not in leases:
                    leases[id(other)] = other.__enter__()
        yield
    except BaseException:
        for held in leases.values():
            held.retract()  # the traceback may keep the graph alive
        raise
    finally:
        for held in leases.values():
            held.__exit__()
