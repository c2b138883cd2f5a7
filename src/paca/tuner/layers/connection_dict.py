"""The connections of a layer's adapters, which nobody else may average or cast."""

from __future__ import annotations

from typing import Any

from peft.tuners._buffer_dict import BufferDict


class ConnectionDict(BufferDict):
    """Connections by adapter name; moved, copied and saved with the module.

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
