"""What an adapter has in a layer: the trained update, and the connections that it belongs to.

Both are saved under the names of PEFT's own PaCA, `paca_delta.<adapter>` and `paca_indices.<adapter>`.
"""

from __future__ import annotations

from typing import Any

from peft.tuners._buffer_dict import BufferDict
from torch import nn

from ...method.columns.sharded import is_flattened


class DeltaDict(nn.ParameterDict):
    """The updates of a layer's adapters, by name.

    Each stands in a module of its own, so that its parameter is called `paca_delta.<adapter>.weight`: TRL makes a
    reference adapter by copying every parameter with `.default.` in its name. State dicts have it without `.weight`.
    """

    def __setitem__(self, adapter_name: str, delta: Any) -> None:
        self._keys[adapter_name] = None
        self._modules[adapter_name] = _Delta(delta if isinstance(delta, nn.Parameter) else nn.Parameter(delta))

    def __getitem__(self, adapter_name: str) -> Any:
        return self._modules[adapter_name].weight  # type: ignore[union-attr]

    def __delitem__(self, adapter_name: str) -> None:
        del self._keys[adapter_name], self._modules[adapter_name]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self:
            if prefix + name in state_dict:
                state_dict[f"{prefix}{name}.weight"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Delta(nn.Module):
    def __init__(self, delta: nn.Parameter) -> None:
        super().__init__()
        self.weight = delta

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # FSDP1 looks for every parameter under its own name.
        name = prefix + "weight" if is_flattened(self, "weight") else prefix[:-1]
        destination[name] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *lists: Any
    ) -> None:
        own: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, own, *lists)
        missing += [name.removesuffix(".weight") for name in own]


class ConnectionDict(BufferDict):
    """The connections of a layer's adapters, by name; moved, copied and saved with the module.

    Libraries average or cast all of a model's buffers, which would make other connections of these. So whoever walks
    the buffers, or takes a state dict, gets copies.
    """

    def __init__(self) -> None:
        super().__init__({}, persistent=True)
        self.__dict__["_buffers"] = _HandsOutCopies()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        for name, own in dict.items(self._buffers):
            if name not in given:
                missing += [prefix + name] if strict and name not in self._non_persistent_buffers_set else []
            elif given[name].shape != own.shape:
                errors.append(
                    f"size mismatch for {prefix}{name}: copying a param with shape {given[name].shape} from "
                    f"checkpoint, the shape in current model is {own.shape}."
                )
            else:
                device = given[name].device if own.is_meta else own.device
                self._buffers[name] = given[name].to(device, own.dtype, copy=True)
        unexpected += [prefix + name for name in given if name not in self._buffers] if strict else []


class _HandsOutCopies(dict[str, Any]):
    def items(self) -> Any:
        return [(name, buffer.clone()) for name, buffer in super().items()]

    def values(self) -> Any:
        return [buffer.clone() for buffer in super().values()]
