"""What is seen of an adapted layer from outside: the pretrained weight.

In a state dict, a copy, a pickle, or a walk over the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ...method.columns.steps import writes_eagerly
from .writing import LAYERS, WrittenLayer


class SeenLayer(WrittenLayer):
    """A layer that shows its columns to nobody but its own forward and backward."""

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SeenLayer:
        if not self.merged_adapters:
            self.columns.release()
        super()._apply(fn, recurse)
        self.retired = {name: retired.moved(fn) for name, retired in self.retired.items()}
        self._adopt_weight(fn)
        self._follow_change()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copied and pickled with the pretrained weight; merged layers with what unmerging needs."""
        state = self.__dict__.copy()
        state["columns"] = None
        if self.merged_adapters:
            state["columns"] = (self.columns.kept, self.columns.shown)
        elif writes_eagerly() and self.columns.shown is not None:
            base = self.base_layer.__class__.__new__(self.base_layer.__class__)
            base.__dict__ = {**self.base_layer.__dict__, "_parameters": dict(self.base_layer._parameters)}
            weight = nn.Parameter(self.columns.pretrained_copy(), requires_grad=self.base_weight.requires_grad)
            base._parameters[self.weight_name] = weight
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
        LAYERS.add(self)

    def __repr__(self) -> str:
        return "paca." + super().__repr__()


def follow_load(layer: SeenLayer, _: Any) -> None:
    """After a state dict was loaded into the layer."""
    layer._adopt_weight()
    if not layer.merged_adapters:
        layer.sync()
