"""What an adapted layer holds: its base layer, its adapters and the keeper of the columns that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...method.columns.resident import Columns, Term
from ...method.columns.retired import RetiredColumns
from ...method.columns.sharded import ShardedColumns, divided_problem, is_sharded
from ...method.columns.shared_gather import SharedGather


class LayerState(nn.Module, BaseTunerLayer):  # in this order, or fully_shard could not change its class
    """A base layer, the adapters on it, and the facts in which kinds of layers differ.

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
    reads_gathered: ClassVar[bool] = False  # whether it multiplies with what FSDP2 gathers, its columns in it
    weight_name = "weight"  # the base layer's parameter that holds the columns
    weight_dims: ClassVar[tuple[int, ...]] = (2,)  # how many dimensions it may have
    base_forward: ClassVar[Callable[..., Any] | None] = None  # the only one that columns can take the place of, if so

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        # Which class it was, if it computes what this kind does; engines make a subclass of it, or wrap it in another.
        self._known_class = type(base_layer) if self._is_known(type(base_layer)) else ()
        self.r: dict[str, int] = {}
        self.paca_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.paca_delta = nn.ParameterDict({})
        self.paca_indices = BufferDict({}, persistent=True)
        self.gathers: dict[str, SharedGather] = {}  # of adapters that share their connections with other layers
        self.retired: dict[str, RetiredColumns] = {}  # of adapters whose connections have moved
        self.in_features, self.out_features = self._features()
        self.columns = self._new_columns()
        self.merged_adapters: list[str] = []
        self._remerge: list[str] = []
        self._disable_adapters = False

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
        return divided_problem(base)

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

    def _weight_shape(self) -> torch.Size:
        return self.base_weight.shape

    def weight_device(self) -> torch.device:
        """Where the base weight is."""
        return self.base_weight.device

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        return self.out_features, r

    def _delta_dtype(self) -> torch.dtype:
        """The dtype of new updates, before PEFT casts them."""
        return self.base_weight.dtype

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
        return (*terms, *self._retired_terms(adapter_names)) if self.retired else terms

    def _retired_terms(self, adapter_names: list[str]) -> Iterator[Term]:
        for name in adapter_names:
            if name in self.retired and len(self.retired[name].indices):
                yield Term(self.retired[name].indices, self.retired[name].delta, self.scaling[name], retired=True)

    def _weight_holds_columns(self) -> bool:
        """Whether the base layer computes what this kind computes, from the weight that was adapted.

        Not so for a subclass with a forward of its own, and where an engine replaces forward or weight (accelerate's
        offloading, FSDP, ZeRO-3). There the update is added beside the base layer's output.
        """
        base: Any = self._modules["base_layer"]
        return (
            isinstance(base, self._known_class)
            and self._has_own_forward(base)
            and base._parameters.get(self.weight_name) is self.columns.weight
            and ("_fsdp_use_orig_params" not in base.__dict__ or is_sharded(self.columns.weight))
            and not hasattr(self.columns.weight, "ds_id")
        )

    def _has_own_forward(self, base: Any) -> bool:
        """Whether the base layer's forward is that of its class."""
        return "forward" not in base.__dict__

    @classmethod
    def _is_known(cls, base_class: Any) -> bool:
        """Whether layers of this class compute what this kind does, and nothing else."""
        return cls.base_forward is None or base_class.forward is cls.base_forward
