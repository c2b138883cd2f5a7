"""`PacaLayer`: what every adapted layer does, whatever kind of layer it wraps.

A layer shows its active adapters in the base weight (`columns.py`) and runs the base layer's own forward over them.
Whoever looks at the base weight from outside (a state dict, a copy, a pickle, a layer being unloaded) finds the
pretrained values. A kind of layer adds the few facts in which it differs; see `linear.py`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..autograd import partial_linear
from ..columns import PRETRAINED, Columns, Kept, Shown, Term, write_eagerly, writes_eagerly
from ..dequantized import DequantizedColumns
from ..distributed.sharded import (
    ShardedColumns,
    is_gathered,
    is_sharded,
    require_not_flattened,
    reshard,
    show_the_same,
)
from ..errors import PacaError
from ..selection import random_connections
from ..settled import Settled, move
from ..shared_gather import SharedGather

# All adapted layers that live, so that the first compilation can bring their columns up to date.
_LAYERS: weakref.WeakSet[PacaLayer] = weakref.WeakSet()

# Those whose shards were gathered before columns could be written into them: the next optimizer step makes up for it.
_WAITING: weakref.WeakSet[PacaLayer] = weakref.WeakSet()


class PacaLayer(BaseTunerLayer, nn.Module):
    """A base layer and the adapters that are shown in its weight.

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
    other_param_names: tuple[str, ...] = ("r", "paca_alpha", "scaling", "paca_indices", "settled", "gathers")

    connection_dim: ClassVar[int]  # the dimension of the base weight that counts connections
    delta_dim: ClassVar[int] = 1  # the dimension of `paca_delta` that does
    reads_features_last: ClassVar[bool] = False  # whether the input is (..., in) and a product with the weight
    reads_gathered: ClassVar[bool] = False  # whether it multiplies with what FSDP2 gathers, its columns in it
    weight_name = "weight"  # the base layer's parameter that holds the columns
    weight_dims: ClassVar[tuple[int, ...]] = (2,)  # how many dimensions it may have
    base_forward: ClassVar[Callable[..., Any]]  # what the base layer's forward must be for columns to take its place

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.paca_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.paca_delta = nn.ParameterDict({})
        self.paca_indices = BufferDict({}, persistent=True)
        self.gathers: dict[str, SharedGather] = {}  # of adapters that share their connections with other layers
        self.settled: dict[str, Settled] = {}  # of adapters whose connections have moved
        self.in_features, self.out_features = self._features()
        self.columns = self._new_columns()
        self.merged_adapters: list[str] = []
        self._remerge: list[str] = []
        self._disable_adapters = False
        self.register_load_state_dict_post_hook(_follow)
        _LAYERS.add(self)

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why a base layer of this kind cannot be adapted as it is.

        Args:
            base: The layer.

        Returns:
            A sentence, or None if it can.
        """
        weight = base._parameters.get(cls.weight_name)
        if weight is None:
            return "its weight is computed anew in each forward (a parametrization, such as weight_norm)."
        if isinstance(weight, nn.UninitializedParameter):
            return "its weight has no shape yet; run the model once first."
        if not weight.is_floating_point():
            return f"its weight is {weight.dtype}, in which no column can be trained."
        if weight.dim() not in cls.weight_dims:
            return f"its weight has the shape {tuple(weight.shape)}, which is not this layer's own."
        return None

    @classmethod
    def connections(cls, base: Any) -> int:
        """How many connections a base layer of this kind has.

        Args:
            base: The layer.

        Returns:
            The number of them, the largest rank.
        """
        return base._parameters[cls.weight_name].shape[cls.connection_dim]

    def _features(self) -> tuple[int, int]:
        """The base weight's connections and the length of one: `(in, out)`."""
        raise NotImplementedError

    def _new_columns(self) -> Any:
        """The keeper of the base weight's columns."""
        keeper = ShardedColumns if is_sharded(self.base_weight) else Columns
        return keeper(self.base_weight, self.connection_dim, self.delta_dim)

    @property
    def base_weight(self) -> Any:
        """The base layer's parameter that holds the columns."""
        return getattr(self.get_base_layer(), self.weight_name)

    def _weight_key(self) -> str:
        """The name of that parameter in this layer's state dict."""
        return f"base_layer.{self.weight_name}"

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
        self.columns.release()
        self.r[adapter_name] = r
        self.paca_alpha[adapter_name] = paca_alpha
        self.scaling[adapter_name] = paca_alpha / r
        self.paca_indices[adapter_name] = random_connections(self.in_features, r, seed)
        self.paca_delta[adapter_name] = nn.Parameter(torch.zeros(self._delta_shape(r), dtype=self._delta_dtype()))
        if not init_weights:
            nn.init.normal_(self.paca_delta[adapter_name], std=0.1)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def set_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Train other connections from now on; the updates stay what they are.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.
        """
        self.columns.release()
        self.paca_indices[adapter_name] = indices.to(self.paca_indices[adapter_name].device)
        self._follow_change()

    def move_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Train other connections from now on; those trained so far stay in the weight as they are.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.
        """
        self.columns.take_out()
        delta, old = self.paca_delta[adapter_name], self.paca_indices[adapter_name]
        new = indices.to(old.device)
        values, self.settled[adapter_name] = move(
            delta.detach(), old, new, self.settled.get(adapter_name), self.delta_dim
        )
        with torch.no_grad():
            delta.copy_(values)
        self.paca_indices[adapter_name] = new
        self.columns.invalidate()
        self._follow_change()

    def touched(self, adapter_name: str) -> Tensor:
        """The connections that were trained since all of them were last, shape `(n,)`."""
        settled = self.settled.get(adapter_name)
        return self.paca_indices[adapter_name] if settled is None else settled.touched

    def whole_update(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """All connections that an adapter has changed, and their updates.

        Args:
            adapter_name: The adapter.

        Returns:
            Indices, ascending, shape `(n,)`, and updates of the shape that `paca_delta` has at rank `n`.
        """
        indices, delta = self.paca_indices[adapter_name], self.paca_delta[adapter_name].detach()
        settled = self.settled.get(adapter_name)
        return (indices, delta) if settled is None else settled.joined(indices, delta, self.delta_dim)

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        return self.out_features, r

    def _delta_dtype(self) -> torch.dtype:
        """The dtype of new updates, before PEFT casts them."""
        return self.base_weight.dtype

    def weight_device(self) -> torch.device:
        """Where the base weight is."""
        return self.base_weight.device

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's, less its cast: a loaded update keeps the precision of its file, and its `requires_grad`."""
        delta = self.paca_delta.get(adapter_name)
        device = self.weight_device() if device is None else device
        if delta is None or delta.device in (device, torch.device("meta")):
            return
        self.paca_delta[adapter_name] = nn.Parameter(delta.detach().to(device), requires_grad=delta.requires_grad)
        self.paca_indices[adapter_name] = self.paca_indices[adapter_name].to(device)

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

    def show_columns(self) -> None:
        """Write now what the next forward will find in the weight, unless it is there already."""
        if (
            self._disable_adapters
            or self.merged_adapters
            or not (self._weight_holds_columns() or self._meets_shards())
        ):
            return
        terms = self._terms(self.active_adapters)
        if terms:
            self.columns.show(terms, torch.is_grad_enabled() and any(term.delta.requires_grad for term in terms))

    def _forward_resident(self, x: Tensor, terms: tuple[Term, ...], *args: Any, **kwargs: Any) -> Tensor:
        columns = shown = None
        grad = torch.is_grad_enabled()
        trains = grad and (terms[0].delta.requires_grad or any(term.delta.requires_grad for term in terms))
        if torch.compiler.is_compiling():
            _columns_are_current()
        else:
            columns = self.columns
            shown = columns.show(terms, trains)
        if not (trains or (grad and (x.requires_grad or _requires_grad(self.base_layer.bias)))):
            return self.base_layer(x, *args, **kwargs)
        return self._forward_over(x, terms, columns, shown, *args, **kwargs)

    def _forward_as_it_is(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer over what its weight shows now, pretrained or merged; backward will find it again."""
        plain = torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad)
        if plain or not (self._weight_holds_columns() or isinstance(self.columns, ShardedColumns)):
            return self.base_layer(x, *args, **kwargs)
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
        if not _has_hooks(base):
            return self._multiply(x, terms, columns, shown)
        with _forward_replaced(base, lambda x: self._multiply(x, terms, columns, shown)):
            return base(x, *args, **kwargs)

    def _multiply(self, x: Tensor, terms: tuple[Term, ...], columns: Any, shown: Shown | None) -> Tensor:
        """`Y = X Wᵀ + b` over a weight with columns in it, differentiable in these."""
        return over_terms(x, self._matrix(), self.base_layer._parameters["bias"], terms, columns, shown)

    def _forward_beside(self, x: Tensor, terms: tuple[Term, ...], *args: Any, **kwargs: Any) -> Tensor:
        """`Y = base(X) + Σ sₖ·X[..., Iₖ] Δₖᵀ`, for a base layer whose forward or weight is not its own."""
        if not torch.compiler.is_compiling():
            self.columns.take_out()  # the base layer may have been replaced while its weight showed columns
        y = self.base_layer(x, *args, **kwargs)
        for term in terms:
            y = y + self._beside(x, term).to(y.dtype)
        return y

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

    def _beside(self, x: Tensor, term: Term) -> Tensor:
        part = x.index_select(-1, term.indices).to(term.delta.dtype)
        return nn.functional.linear(part, term.delta.to(part.device)) * term.scaling

    def _terms(self, adapter_names: list[str]) -> tuple[Term, ...]:
        # Straight to the dictionaries: this is on the path of every forward, and nn.Module's look-ups add up.
        modules: dict[str, Any] = self._modules
        deltas, indices = modules["paca_delta"]._parameters, modules["paca_indices"]._buffers
        terms = tuple(
            Term(indices[name], deltas[name], self.scaling[name]) for name in adapter_names if name in deltas
        )
        if self.gathers:
            named = [name for name in adapter_names if name in deltas]
            terms = tuple(
                term._replace(gather=self.gathers.get(name)) for name, term in zip(named, terms, strict=True)
            )
        return (*terms, *self._settled_terms(adapter_names)) if self.settled else terms

    def _settled_terms(self, adapter_names: list[str]) -> Iterator[Term]:
        for name in adapter_names:
            if name in self.settled and len(self.settled[name].indices):
                yield Term(self.settled[name].indices, self.settled[name].delta, self.scaling[name], settled=True)

    def _matrix(self) -> Tensor:
        """The base weight as a matrix of shape `(out, in)`; a view."""
        raise NotImplementedError

    def _weight_holds_columns(self) -> bool:
        """Whether the base layer computes what this kind computes, from the weight that was adapted.

        Not so for a subclass with a forward of its own, and where an engine replaces forward or weight (accelerate's
        offloading, FSDP, ZeRO-3). There the update is added beside the base layer's output.
        """
        base: Any = self._modules["base_layer"]
        return (
            self._is_known(type(base))
            and "forward" not in base.__dict__
            and base._parameters.get(self.weight_name) is self.columns.weight
            and ("_fsdp_use_orig_params" not in base.__dict__ or is_sharded(self.columns.weight))
            and not hasattr(self.columns.weight, "ds_id")
        )

    def _meets_shards(self) -> bool:
        """Take over shards that stand in the place of the weight, if so; whether they can hold columns."""
        base = self.get_base_layer()
        require_not_flattened(base, self.weight_name)
        if not is_sharded(base._parameters.get(self.weight_name)):
            return False
        self._adopt_weight()
        return self._weight_holds_columns()

    def _gathered_with(self, terms: tuple[Term, ...]) -> bool:
        """Whether FSDP2 has gathered the weight for this forward, from shards that hold the columns of these terms."""
        require_not_flattened(self.get_base_layer(), self.weight_name)
        if not self.reads_gathered or not is_gathered(self.get_base_layer(), self.weight_name):
            return False
        if torch.compiler.is_compiling():
            return isinstance(self.columns, ShardedColumns) and _columns_are_current()
        shown = self.columns.shown
        if shown is None:
            _WAITING.add(self)
            return False
        if not isinstance(self.columns, ShardedColumns):  # sharded while it showed columns, and gathered ever since
            _WAITING.add(self)
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

    @classmethod
    def _is_known(cls, base_class: Any) -> bool:
        """Whether layers of this class compute what this kind does, and nothing else."""
        return base_class.forward is cls.base_forward

    def sync(self) -> None:
        """Tell that a `Δ` was written behind PyTorch's back: its columns are written anew before they are used."""
        self.columns.invalidate()
        if not self.merged_adapters:
            self.columns.take_out()
            self._follow_change()

    def _follow_change(self) -> None:
        """Write the columns now, if compiled code or an engine may read them before anything else does."""
        self._adopt_weight()
        if self._disable_adapters and self.columns.eager:
            self.columns.take_out()
        eager = writes_eagerly() or self.columns.eager
        if not eager or self._disable_adapters or self.merged_adapters or not self._weight_holds_columns():
            return
        terms = self._terms(self.active_adapters)
        meta = any(tensor.device.type == "meta" for tensor in (self.columns.weight, *(term.delta for term in terms)))
        if terms and not meta:
            self.columns.show(terms)
        else:
            self.columns.take_out()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._follow_change()

    def enable_adapters(self, enabled: bool) -> None:
        """Show the adapters, or the pretrained layer; merged ones are unmerged meanwhile and merged again after.

        Args:
            enabled: Whether the adapters take part.
        """
        self._adopt_weight()
        if not enabled:
            self._remerge = self._remerge or list(self.merged_adapters)
            self.merged_adapters = []
            self._unmerge_terms()
        super().enable_adapters(enabled)
        if enabled and self._remerge:
            names, self._remerge = self._remerge, []
            self.merge(adapter_names=names)
        self._follow_change()

    def delete_adapter(self, adapter_name: str) -> None:
        self._adopt_weight()
        if not self.merged_adapters:
            self.columns.release()
        self._remerge = [name for name in self._remerge if name != adapter_name]
        super().delete_adapter(adapter_name)
        self._follow_change()

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling to `scale · alpha / r`.

        Args:
            adapter: Its name; a layer without it is left alone.
            scale: The factor.
        """
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.paca_alpha[adapter] / self.r[adapter]
            self._follow_change()

    def scale_layer(self, scale: float) -> None:
        """Multiply the active adapters' scaling.

        Args:
            scale: The factor.
        """
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale
        self._follow_change()

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`.

        Args:
            scale: The factor to divide by; None goes back to `alpha / r`.
        """
        for name in self.active_adapters:
            if name in self.scaling:
                plain = self.paca_alpha[name] / self.r[name]
                self.scaling[name] = plain if scale is None else self.scaling[name] / scale
        self._follow_change()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update `s·Δ`, zero in all columns but the adapter's.

        Args:
            adapter: Its name.

        Returns:
            A tensor of the base weight's shape, in the dtype of `Δ`.
        """
        indices, delta = self.paca_indices[adapter], self.paca_delta[adapter]
        if adapter in self.settled:
            indices, delta = self.whole_update(adapter)
        term = Term(indices, delta, self.scaling[adapter])
        dense = term.delta.new_zeros(self._weight_shape())
        update = (term.delta * term.scaling).movedim(self.delta_dim, self.connection_dim)
        return dense.index_copy(self.connection_dim, term.indices, update)

    def _weight_shape(self) -> torch.Size:
        return self.base_weight.shape

    def trained_from(self, adapter_name: str) -> tuple[Tensor, bool]:
        """The pretrained columns that an adapter's updates are added to.

        Args:
            adapter_name: The adapter.

        Returns:
            The columns, connections first, and whether a quantization has rounded them.
        """
        return self.columns.pretrained_columns(self.whole_update(adapter_name)[0]), False

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
        self._adopt_weight()
        merged = [*self.merged_adapters, *names]
        self.check_merge(names, safe_merge)
        self._merge_terms(self._terms(merged))
        self.merged_adapters = merged

    def _merge_terms(self, terms: tuple[Term, ...]) -> None:
        """Make the base weight hold these terms, and no others, until `_unmerge_terms`."""
        self.columns.release()
        self.columns.show(tuple(term._replace(settled=False) for term in terms))
        self.columns.pin()

    def _unmerge_terms(self) -> None:
        """Make the base weight the pretrained one."""
        self.columns.release()

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
        terms = self._terms([*self.merged_adapters, *names])
        columns = self.columns.would_show(terms) if terms else torch.empty(0)
        columns = columns if dtype is None else columns.to(dtype)
        if not columns.isfinite().all():
            raise PacaError(
                f"NaNs detected in the merged weights: adapter {', '.join(names)} holds NaN or infinite values, or "
                f"values beyond {columns.dtype}. Nothing was merged."
            )

    def unmerge(self) -> None:
        """Put the pretrained values back, bit for bit."""
        self._remerge = []
        self._adopt_weight()
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters = []
        self._unmerge_terms()
        self._follow_change()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: `s·Δ` at `r` columns is a LoRA of rank `r`, exactly.

        Args:
            adapter_name: Any; it holds for all.

        Returns:
            True.
        """
        return True

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """As any module's; who walks a model's parameters after a step comes by here, and meets no stale columns."""
        if self.columns.stale:
            self.columns.take_out()
        return super().named_modules(*args, **kwargs)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As any module's; the base weight in it is the pretrained one, or the merged one if adapters are merged."""
        self._adopt_weight()
        copies = writes_eagerly() and self.columns.shown is not None
        if not copies and not self.merged_adapters:
            self.columns.release()
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        key = f"{prefix}{self._weight_key()}"
        if key in state and not self.merged_adapters:
            if copies:
                state[key] = self.columns.pretrained_copy()
            else:
                self.columns.hand_out(state[key])
        return state

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._adopt_weight()
        if not self.merged_adapters:
            self.columns.release()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PacaLayer:
        if not self.merged_adapters:
            self.columns.release()
        super()._apply(fn, recurse)
        self.settled = {name: settled.moved(fn) for name, settled in self.settled.items()}
        self._adopt_weight(fn)
        self._follow_change()
        return self

    def _adopt_weight(self, fn: Callable[[Tensor], Tensor] | None = None) -> None:
        """Keep the base layer's weight of now, which may be another object than before."""
        old = self.columns
        if old.weight is not self.base_weight:
            reshard(self.get_base_layer())
        if old.weight is not self.base_weight:
            self.columns = self._new_columns()
            if isinstance(self.columns, ShardedColumns):
                self.columns.take_over(old)
        if self.merged_adapters and fn is not None and old.kept is not None and old.shown is not None:
            self.columns.adopt(Kept(fn(old.kept.indices), fn(old.kept.values)), old.shown)

    def __getstate__(self) -> dict[str, Any]:
        """Copied and pickled with the pretrained weight; merged layers with what unmerging needs."""
        state = self.__dict__.copy()
        state["columns"] = None
        if self.merged_adapters:
            state["columns"] = (self.columns.kept, self.columns.shown)
        elif writes_eagerly() and self.columns.shown is not None:
            base = self.base_layer.__class__.__new__(self.base_layer.__class__)
            base.__dict__ = {**self.base_layer.__dict__, "_parameters": dict(self.base_layer._parameters)}
            base.weight = nn.Parameter(self.columns.pretrained_copy(), requires_grad=base.weight.requires_grad)
            state["_modules"] = {**self._modules, "base_layer": base}
        else:
            self.columns.release()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        merged = state.pop("columns")
        super().__setstate__(state)
        self.columns = self._new_columns()
        if merged is not None:
            self.columns.adopt(*merged)
        _LAYERS.add(self)

    def __repr__(self) -> str:
        return "paca." + super().__repr__()


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
    trained = [term for term in terms if not term.settled]
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


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._has_any_global_hook()
    )


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have `module(x)` call `forward(x)`, so that the module's hooks fire around it."""
    module.__dict__["forward"] = forward  # as `module.forward = forward`, but its deletion can be compiled
    try:
        yield
    finally:
        del module.__dict__["forward"]


def _follow(layer: PacaLayer, _: Any) -> None:
    """After a state dict was loaded into the layer."""
    layer._adopt_weight()
    if not layer.merged_adapters:
        layer.sync()


@torch.compiler.disable
def _after_step(*_: Any) -> None:
    while _WAITING:
        _WAITING.pop()._follow_change()


register_optimizer_step_post_hook(_after_step)


@torch.compiler.assume_constant_result
def _columns_are_current() -> bool:
    """Called while a forward is traced, not by the compiled code: from here on, changes are written at once."""
    if not writes_eagerly():
        write_eagerly()
        for layer in list(_LAYERS):
            layer._follow_change()
    return True


def sync(model: nn.Module) -> None:
    """Have all columns written again before they are next used.

    Needed only after a `paca_delta` was changed in a way that nothing tells of: through `.data`, or by an engine that
    is no `torch.optim.Optimizer`. Optimizer steps and loads are seen without it; edits in place as well, but not by a
    compiled model, which cannot look before it runs.

    Args:
        model: Any module that contains adapted layers.
    """
    for module in model.modules():
        if isinstance(module, PacaLayer):
            module.sync()
