"""Reads single columns out of the weights of an unquantized checkpoint.

An adapter on a quantized model may start from its columns as they were before quantization. They are a few of
thousands, so they are sliced out of the safetensors file, and no weight is read whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import PacaError
from ..method.fingerprint import QUANTIZED
from .messages import near_names

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class ColumnSource:
    """The safetensors files of a checkpoint.

    Args:
        source: A folder, or the name of a repository on the Hub.
        prefix: The name under which the base model hangs in the whole one (`model`), which checkpoints may lack.
    """

    def __init__(self, source: str, prefix: str = "") -> None:
        self.source = source
        self.prefix = f"{prefix}." if prefix else ""
        self.files = dict(_tensors(source))

    def read(self, layer: str, indices: Tensor, in_features: int, pretrained: Tensor) -> Tensor:
        """Read a layer's columns.

        Args:
            layer: Name of the layer in the model.
            indices: The columns, ascending, shape `(r,)`.
            in_features: How many columns the layer has.
            pretrained: What the quantized model has there, shape `(out, r)`.

        Returns:
            Shape `(out, r)`, in the checkpoint's dtype.

        Raises:
            PacaError: If the checkpoint has no such tensor, or one of another model; names the tensor.
        """
        name = self._name(layer)
        wanted = [len(pretrained), in_features]
        with safe_open(self.files[name], framework="pt") as file:
            weight = file.get_slice(name)
            if weight.get_shape() != wanted:
                raise PacaError(
                    f"column_source={self.source!r}: {name} is {tuple(weight.get_shape())} there, the model's "
                    f"{layer}.weight is {tuple(wanted)}. Name the checkpoint that this model was quantized from."
                )
            columns = torch.cat([weight[:, start:stop] for start, stop in runs(indices.tolist())], dim=1)
        difference = (columns.float() - pretrained.float().cpu()).norm() / columns.float().norm().clamp_min(1e-30)
        if not columns.is_floating_point() or not difference <= QUANTIZED:
            raise PacaError(
                f"column_source={self.source!r}: {name} differs from the model's by {100 * float(difference):.0f} %, "
                "more than quantization explains. Name the checkpoint that this model was quantized from."
            )
        return columns

    def _name(self, layer: str) -> str:
        """The tensor's name in the checkpoint, which may have been saved with or without the model's prefix."""
        plain = f"{layer}.weight"
        for name in (plain, f"{self.prefix}{plain}", plain.removeprefix(self.prefix)):
            if name in self.files:
                return name
        near = [name for name in self.files if name.endswith(".".join(plain.split(".")[-2:]))]
        hint = near[:3] or near_names(layer, self.files)
        raise PacaError(
            f"column_source={self.source!r} has no tensor {plain!r}"
            + (f"; it has for example {', '.join(hint)}. " if hint else ". ")
            + "Name the checkpoint that this model was quantized from."
        )


def runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """The runs of consecutive numbers in ascending indices: `(first, last + 1)` of each."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found


def _tensors(source: str) -> Iterable[tuple[str, Path]]:
    """Every tensor's name, with the file that holds it."""
    for file in _files(source):
        with safe_open(file, framework="pt") as opened:
            yield from ((name, file) for name in opened.keys())  # noqa: SIM118 - it is no dictionary


def _files(source: str) -> list[Path]:
    index = _find(source, _INDEX)
    if index is not None:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        found = [_find(source, shard) for shard in shards]
        missing = [shard for shard, path in zip(shards, found, strict=True) if path is None]
        if missing:
            raise PacaError(f"column_source={source!r}: {_INDEX} names {missing[0]}, which is not there.")
        return [path for path in found if path is not None]
    single = _find(source, _SINGLE)
    if single is None:
        raise PacaError(
            f"column_source={source!r} is no checkpoint to read columns from: it has neither {_SINGLE} nor {_INDEX}. "
            "Pass a folder that save_pretrained wrote, or the Hub name of a model in safetensors files."
        )
    return [single]


def _find(source: str, file: str) -> Path | None:
    """A file of a folder or, downloaded if need be, of a repository on the Hub."""
    if Path(source).is_dir():
        path = Path(source) / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise PacaError(
            f"column_source={source!r} is neither a folder nor a repository that can be reached on the Hub: {error}"
        ) from error
    return None if found is None else Path(found)
