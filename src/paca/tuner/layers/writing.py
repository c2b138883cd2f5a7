"""When the columns of adapted layers are written: before they are used, or at once where nobody can look before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ...errors import PacaError
from ...method.columns.resident import Kept
from ...method.columns.sharded import ShardedColumns, is_sharded, require_not_flattened, reshard
from ...method.columns.steps import is_copied, write_eagerly, writes_eagerly
from .state import LayerState

# All adapted layers that live, so that the first compilation can bring their columns up to date.
LAYERS: weakref.WeakSet[WrittenLayer] = weakref.WeakSet()

# Those whose shards were gathered before columns could be written into them: the next optimizer step makes up for it.
WAITING: weakref.WeakSet[WrittenLayer] = weakref.WeakSet()


class WrittenLayer(LayerState):
    """A layer that brings the columns in its weight up to date when its adapters change."""

    def show_columns(self) -> None:
        """Write now what the next forward will find in the weight, unless it is there already."""
        if self.merged_adapters:
            return
        if self._disable_adapters:
            self.columns.take_out()  # a backward pass since may have shown its forward's columns again
            return
        if not (self._weight_holds_columns() or self._meets_shards()):
            return
        terms = self._terms(self.active_adapters)
        if terms:
            self.columns.show(terms, torch.is_grad_enabled() and any(term.delta.requires_grad for term in terms))
        else:
            self.columns.take_out()

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
        held = (self.columns.weight, *(term.delta for term in terms), *(term.indices for term in terms))
        meta = any(tensor.device.type == "meta" for tensor in held)
        if terms and not meta:
            self.columns.show(terms)
        else:
            self.columns.take_out()

    def _waits_for_values(self) -> bool:
        """Whether the weight or an update is on the meta device, for a load that follows."""
        deltas = (term.delta.device for term in self._terms(self.active_adapters))
        return any(device.type == "meta" for device in (self.weight_device(), *deltas))

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

    def _meets_shards(self) -> bool:
        """Take over shards that stand in the place of the weight, if so; whether they can hold columns."""
        base = self.get_base_layer()
        require_not_flattened(base, self.weight_name)
        if not is_sharded(base._parameters.get(self.weight_name)):
            return False
        self._adopt_weight()
        return self._weight_holds_columns()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
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


@torch.compiler.disable
def _after_step(*_: Any) -> None:
    while WAITING:
        WAITING.pop()._follow_change()


register_optimizer_step_post_hook(_after_step)


@torch.compiler.assume_constant_result
def columns_are_current() -> bool:
    """Called while a forward is traced, not by the compiled code: from here on, changes are written at once."""
    if any(is_copied(delta) for layer in list(LAYERS) for delta in layer.paca_delta.values()):
        raise PacaError(
            "torch.compile does not go with DeepSpeed's ZeRO-1 and ZeRO-2: they change updates after the optimizer's "
            "step, of which compiled code can't be told. Leave torch.compile out, or use ZeRO-3 or FSDP2."
        )
    if not writes_eagerly():
        write_eagerly()
        for layer in list(LAYERS):
            if not layer.columns.eager:  # those of FSDP2's shards are written, and stay gathered while this is traced
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
        if isinstance(module, WrittenLayer):
            module.sync()
