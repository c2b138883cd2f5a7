"""PaCA on quantized linear layers: bitsandbytes (NF4, FP4, int8), torchao, HQQ, GPTQ, AWQ, EETQ and others.

A packed weight cannot hold columns. Each GEMM gets the dequantized matrix with the columns put in, and drops it
(`dequantized.py`); the packed bytes are never written. How a format is unpacked and packed again is PEFT's knowledge
(`peft.utils.quantization_utils`). Where PEFT cannot unpack one (GPTQ, AWQ, EETQ), the update is added beside the base
layer's own output.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, resolve_quantization_backend
from torch import Tensor, nn

from ...errors import PacaError
from ...method.columns.dequantized import DequantizedColumns
from ...method.columns.sharded import divided_problem, is_sharded
from ...method.columns.update import ColumnUpdate
from .additive import additive
from .base import PacaLayer
from .bnb_weight import compute_dtype, dequantized_4bit, packed_as_saved
from .hooks import call_in_place_of
from .linear import linear_over

# Packages whose layers or tensors PEFT knows. Asking PEFT imports all of them that are installed, so it is asked only
# about a layer that comes from one.
PACKAGES = frozenset(
    ("aqlm", "bitsandbytes", "eetq", "gptqmodel", "hqq", "neural_compressor", "torchao", "transformer_engine")
)


def comes_quantized(module: nn.Module) -> bool:
    """Whether a layer, or the tensor that is its weight, belongs to a quantization package.

    Args:
        module: The layer.

    Returns:
        Whether it does.
    """
    classes = (*type(module).__mro__, type(module._parameters.get("weight")))
    return not PACKAGES.isdisjoint(cls.__module__.partition(".")[0] for cls in classes)


def quantization_backend(module: nn.Module, get_apply_tensor_subclass: Callable[[], Any] | None = None) -> Any:
    """PEFT's knowledge of a quantized layer's format.

    Args:
        module: The layer.
        get_apply_tensor_subclass: Returns the configuration that torchao's weights were quantized with.

    Returns:
        A `QuantizationBackend`; None for a layer that is not quantized, or in a way that PEFT does not know.
    """
    if not comes_quantized(module):
        return None
    backend = resolve_quantization_backend(
        module, get_apply_tensor_subclass=get_apply_tensor_subclass or _no_configuration
    )
    if getattr(backend, "backend_name", "") == "torchao" and get_apply_tensor_subclass is None:
        backend.supports_merge = False  # nothing says how to quantize the merged weight
    return backend


def _no_configuration() -> None:
    return None


def quantized_problem(module: nn.Module) -> str | None:
    """Why a quantized layer cannot be adapted as it is.

    Args:
        module: A layer of which `comes_quantized` is true.

    Returns:
        A sentence, or None if it can.
    """
    backend = quantization_backend(module)
    if backend is None:
        found = sorted(PACKAGES & {cls.__module__.partition(".")[0] for cls in type(module).__mro__})
        package = found[0] if found else type(module.weight).__module__.partition(".")[0]
        usable = "is installed and usable" if package in sys.modules else "is not installed"
        return f"PEFT does not know this layer of the package {package!r}, which {usable}."
    if backend.backend_name == "bnb 4bit" and getattr(module.weight, "quant_state", None) is None:
        return "its weight is not quantized yet; move the model to its device first (model.to(device))."
    if backend.backend_name == "bnb 8bit" and module.weight.dtype != torch.int8:
        return (
            "its weight is not in int8; load it with has_fp16_weights=False, and move the model to its device first "
            "(model.to(device))."
        )
    return divided_problem(module)


class QuantizedLinear(PacaLayer):
    """A quantized linear layer with adapted columns; a connection is an input feature.

    Computes in the base layer's own compute dtype, and returns the input's. Without an active adapter, and while
    merged, the base layer's own kernel runs.

    Args:
        base_layer: The quantized layer.
        get_apply_tensor_subclass: For torchao, returns the configuration to quantize merged weights with.
    """

    connection_dim = 1
    other_param_names = (*PacaLayer.other_param_names, "paca_columns")
    columns: DequantizedColumns
    reads_features_last = True
    weight = BaseTunerLayer.weight

    def __init__(self, base_layer: nn.Module, get_apply_tensor_subclass: Callable[[], Any] | None = None) -> None:
        _keep_state(base_layer)
        super().__init__(base_layer)
        self.backend = quantization_backend(base_layer, get_apply_tensor_subclass)
        self.merge_error: float | None = None  # of the merged weight, relative, once merged
        # W₀[:, I] from a better source than the packed weight, `(out, r)`, of the adapters that have it.
        self.paca_columns = BufferDict({}, persistent=True)

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why a quantized layer cannot be adapted as it is; see `quantized_problem`."""
        return quantized_problem(base)

    @classmethod
    def connections(cls, base: Any) -> int:
        """A quantized layer's input features."""
        return base.in_features

    def _features(self) -> tuple[int, int]:
        return self.base_layer.in_features, self.base_layer.out_features

    def _new_columns(self) -> DequantizedColumns:
        return DequantizedColumns(self._dequantize)

    def _delta_dtype(self) -> torch.dtype:
        weight: Any = getattr(self.base_layer, "weight", None)
        return weight.dtype if type(weight).__module__.startswith("torchao.") else torch.float32

    def weight_device(self) -> torch.device:
        """Where the packed weight is."""
        return _tensors(self.base_layer)[0].device

    def set_columns(self, adapter_name: str, columns: Tensor | None) -> None:
        """Have an adapter start from these values of its columns, instead of from the dequantized ones.

        Args:
            adapter_name: The adapter.
            columns: Shape `(out, r)`; None goes back to the dequantized weight's.
        """
        if adapter_name in self.paca_columns:
            del self.paca_columns[adapter_name]
        if columns is not None:
            self.paca_columns[adapter_name] = columns.to(self.weight_device())

    def trained_from(self, adapter_name: str) -> tuple[Tensor, bool]:
        """The pretrained columns that an adapter's updates are added to.

        Args:
            adapter_name: The adapter.

        Returns:
            The columns, connections first, and whether a quantization has rounded them.
        """
        if adapter_name in self.paca_columns:
            return self.paca_columns[adapter_name].t(), False
        return self.pretrained_columns(self.paca_indices[adapter_name]), True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        if adapter_name in self.paca_columns and self.paca_columns[adapter_name].device.type != "meta":
            self.paca_columns[adapter_name] = self.paca_columns[adapter_name].to(device or self.weight_device())

    def _dequantize(self) -> Tensor:
        """The pretrained matrix `(out, in)`, also while another one is merged."""
        return dequantized_matrix(self._written_over or self.base_layer, self.backend)

    def pretrained_columns(self, indices: Tensor) -> Tensor:
        """The dequantized values of some connections, connections first, also while adapters are merged.

        Args:
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, out)`.
        """
        return self.columns.pretrained_columns(None, indices)

    def updates(self, adapter_names: list[str] | None = None) -> tuple[ColumnUpdate, ...]:
        """As any layer's, each with the better values of its columns, where it has them; none of what is merged."""
        if adapter_names is None:
            adapter_names = [] if self._disable_adapters or self.merged_adapters else self.active_adapters
        better: Any = self._modules["paca_columns"]._buffers  # type: ignore[union-attr]
        names = [name for name in adapter_names if name in self.paca_delta]
        updates = zip(names, super().updates(names), strict=True)
        # Not by `_replace`: torch.compile of torch 2.11 can't make again what that has made.
        return tuple(
            ColumnUpdate(one.indices, one.delta, one.scaling, better.get(name), one.gather, one.retired)
            for name, one in updates
        )

    def holds_columns(self) -> bool:
        """Whether the matrix that the base layer multiplies with can be made here."""
        replaced = "forward" in self._modules["base_layer"].__dict__  # type: ignore[union-attr]
        return not replaced and not isinstance(self.backend, ForwardOnlyQuantizationBackend)

    @torch.compiler.disable
    def compute(self, updates: tuple[ColumnUpdate, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's own kernel where there is nothing to add; else a product with the dequantized matrix.

        Args:
            updates: The updates; none for the pretrained or the merged layer.
            x: Input, shape `(..., in)`.
            *args: Passed on to the base layer.
            **kwargs: Likewise.

        Returns:
            Shape `(..., out)`.
        """
        if not updates:
            return self.base_layer(x, *args, **kwargs)
        if not self.holds_columns():
            return additive(self, updates, x, *args, **kwargs)
        loan = self.columns.lend(None, updates)
        return call_in_place_of(self.base_layer, lambda x: self._multiply(x, loan, updates), x, *args, **kwargs)

    def lend_for_call(self, lease: Any) -> None:
        """Nothing: the matrix is made for each product."""

    def _multiply(self, x: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        dtype = compute_dtype(self.base_layer, x)
        bias = self.base_layer.bias
        bias = None if bias is None else bias.to(dtype)
        return linear_over(x.to(dtype), bias, loan, updates).to(x.dtype)

    def _additive(self, x: Tensor, update: ColumnUpdate) -> Tensor:
        delta = update.delta * update.scaling
        if update.pretrained is not None:
            delta = delta + (update.pretrained - self.pretrained_columns(update.indices).t()).to(delta.dtype)
        return nn.functional.linear(x.index_select(-1, update.indices).to(delta.dtype), delta)

    def _weight_shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def adapted_matrix(self, dtype: torch.dtype, adapter_names: list[str] | None = None) -> Tensor:
        """The dequantized weight with the adapters' columns in it: what a 16-bit layer would hold after a merge.

        Args:
            dtype: Of the result.
            adapter_names: The adapters, beside those that are merged; None takes the active ones.

        Returns:
            Shape `(out, in)`.
        """
        names = [name for name in adapter_names or self.active_adapters if name not in self.merged_adapters]
        return self.columns.matrix(self.updates([*self.merged_adapters, *names]), dtype)

    def check_merge(self, adapter_names: list[str] | None = None, safe_merge: bool = True) -> None:
        """All that `merge` checks, without merging.

        Args:
            adapter_names: The adapters that would be merged; None takes the active ones.
            safe_merge: Makes no difference: one value that is not finite would spoil a whole block when packed.

        Raises:
            PacaError: If the format cannot be packed again, or a merged value would not be finite.
        """
        if _is_divided(self.base_layer, self.backend):
            raise PacaError(
                "Cannot merge into a 4-bit weight that FSDP2 has divided: a rank cannot pack its part alone. Save the "
                "adapter (paca.full_adapter_state_dict) and merge it into a model on one process."
            )
        if not self.backend.supports_merge:
            reason = (
                "it was quantized outside of transformers, so that torchao's configuration is not known; load the "
                "model with from_pretrained(…, quantization_config=TorchAoConfig(…))"
                if self.backend.backend_name == "torchao"
                else "PEFT cannot pack this format again"
            )
            raise PacaError(
                f"Cannot merge into a {self.backend.backend_name} layer: {reason}; or merge into a 16-bit model: "
                "model.merge_and_dequantize()."
            )
        self.check_finite(adapter_names)

    @torch.no_grad()
    def _merge_updates(self, updates: tuple[ColumnUpdate, ...]) -> None:
        """Replace the base layer by one with the adapted weight quantized; the original is kept, untouched."""
        original = self.base_layer
        matrix = self.columns.matrix(updates, self.columns.dequantize().dtype)
        self.base_layer = _twin(original)
        try:
            self.backend.set_base_weight(self, matrix.clone())
            packed = dequantized_matrix(self.base_layer, self.backend)
            error = packed.sub_(matrix).norm() / matrix.norm().clamp_min(1e-30)
            if not error.isfinite():
                raise PacaError(
                    f"Cannot merge: the merged values are beyond what {self.backend.backend_name} can hold. Merge "
                    "into a 16-bit model instead: model.merge_and_dequantize()."
                )
        except Exception:
            self.base_layer = original
            raise
        self.merge_error = float(error)
        self.__dict__["_written_over"] = original  # out of the module tree meanwhile

    def _unmerge_updates(self) -> None:
        if self._written_over is not None:
            self.base_layer = self._written_over
        self.__dict__["_written_over"] = self.merge_error = None

    def _would_be(self, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        return self.columns.would_be(None, updates)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PacaLayer:
        if self._written_over is not None:
            self._written_over._apply(fn)
        return super()._apply(fn, recurse)

    def plain_weight(self) -> None:
        """None: no columns are written into a quantized weight."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for layer in (self.base_layer, self._written_over):
            _restore_class(layer)


def dequantized_matrix(layer: Any, backend: Any = None) -> Tensor:
    """The matrix that a quantized linear layer multiplies with.

    Args:
        layer: The layer.
        backend: Its `quantization_backend`, if that is known already.

    Returns:
        Shape `(out, in)`, in memory of its own.
    """
    backend = backend or quantization_backend(layer)
    if isinstance(backend, ForwardOnlyQuantizationBackend):
        return _matrix_by_unit_vectors(layer)
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        return dequantized_4bit(*packed_as_saved(layer.weight))
    if _is_divided(layer, backend):
        return _matrix_of_divided(layer)
    if backend.backend_name == "bnb 4bit":
        return dequantized_4bit(layer.weight.data, state)
    return backend.get_base_weight(layer).detach()


def _is_divided(layer: Any, backend: Any) -> bool:
    """Whether FSDP2 divides a 4-bit weight, which then is bytes without a state, gathered ones or a rank's part."""
    return backend.backend_name == "bnb 4bit" and getattr(layer.weight, "quant_state", None) is None


def _matrix_of_divided(layer: Any) -> Tensor:
    """The matrix of a 4-bit layer whose weight FSDP2 divides; a collective call where it is not gathered."""
    packed = layer.weight.full_tensor() if is_sharded(layer.weight) else layer.weight.data
    if packed.dtype != layer.quant_storage:
        raise PacaError(
            f"FSDP2 has cast a packed 4-bit weight, stored as {layer.quant_storage}, to {packed.dtype}: its bytes are "
            "lost. Load the model with bnb_4bit_quant_storage equal to the param_dtype of MixedPrecisionPolicy (in "
            "accelerate: to the dtype of mixed_precision), or leave param_dtype out."
        )
    return dequantized_4bit(packed, layer.quant_state)


def _keep_state(layer: Any) -> None:
    """Have a 4-bit layer know how to unpack its weight when FSDP2 has made plain bytes of that."""
    state = getattr(layer._parameters.get("weight"), "quant_state", None)
    if state is not None and getattr(layer, "quant_state", state) is None:
        layer.quant_state = state


def unpacked_sizes(model: nn.Module) -> dict[str, int]:
    """How many values each parameter of a model stands for; two of 4 bits are packed into a byte, for instance.

    Args:
        model: Any model, quantized or not.

    Returns:
        The number of values, by the parameter's name.
    """
    modules: Iterable[Any] = model.modules()
    hqq = {id(module.W_q): module.meta["shape"] for module in modules if _is_packed_hqq(module)}
    sizes = {}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)  # bitsandbytes
        sizes[name] = math.prod(hqq.get(id(parameter), parameter.shape if state is None else state.shape))
    return sizes


def _is_packed_hqq(module: Any) -> bool:
    return comes_quantized(module) and hasattr(module, "W_q") and "shape" in getattr(module, "meta", ())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()] or [torch.empty(0)]


@torch.no_grad()
def _matrix_by_unit_vectors(base: Any) -> Tensor:
    """The matrix that a layer multiplies with, for a format that nobody can unpack: its outputs for unit vectors."""
    tensors = _tensors(base)
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float16)
    outputs = base(torch.eye(base.in_features, dtype=dtype, device=tensors[0].device))
    bias = getattr(base, "bias", None)
    return (outputs if bias is None else outputs - bias).t().contiguous()


def _restore_class(layer: Any) -> None:
    """Make a weight bitsandbytes' own again: a pickle brings it back as a plain parameter with the same attributes."""
    name = {"Linear4bit": "Params4bit", "Linear8bitLt": "Int8Params"}.get(type(layer).__name__)
    if name is not None and type(layer.weight) is nn.Parameter:
        import bitsandbytes

        layer.weight.__class__ = getattr(bitsandbytes.nn, name)


def _twin(layer: nn.Module) -> Any:
    """Another layer with the same hooks and settings, whose parameters and state can be replaced."""
    twin = layer.__new__(type(layer))
    twin.__dict__ = layer.__dict__.copy()
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(layer.__dict__[name])
    weight: Any = twin._parameters.get("weight")
    if hasattr(weight, "module"):  # bitsandbytes: the weight names its layer, and packs its state into it
        weight = twin._parameters["weight"] = copy.copy(weight)
        weight.module = twin
    if "state" in twin.__dict__:
        twin.__dict__["state"] = copy.copy(twin.__dict__["state"])
    return twin
