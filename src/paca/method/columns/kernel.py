"""The columns of many weights put in, and put back, by one Triton kernel each.

A kernel gets a table with one row per weight: where in memory the weight, its connections, what is kept and `Δ` are,
and how they lie there. The table stays on the device for as long as the same tensors are meant.

That the kernels set the bits that PyTorch's operators set is not taken for granted: on each device they are tried on
small weights first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block import same_bits
from .update import ColumnUpdate, adapted_columns, connections_first

logger = logging.getLogger(__name__)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ROWS, _COLUMNS = 64, 16  # of what one program moves
_TABLES = 16  # kept per kind of tensors: one for each model that is in use by turns


class Part(NamedTuple):
    """One weight's share of what a kernel moves."""

    kernels: Kernels
    entry: tuple[float, ...]  # the weight's row of the table
    tensors: tuple[Tensor, ...]  # those that it points to


class Kernels:
    """The kernels for weights and updates of certain dtypes on one device.

    Args:
        device: The device.
        weight_dtype: Of the weights.
        delta_dtype: Of the updates.
    """

    def __init__(self, device: torch.device, weight_dtype: torch.dtype, delta_dtype: torch.dtype) -> None:
        self.device = device
        self._weight, self._delta = (getattr(tl, str(d).removeprefix("torch.")) for d in (weight_dtype, delta_dtype))
        self._sum = tl.float64 if torch.float64 in (weight_dtype, delta_dtype) else tl.float32
        self._tables: dict[tuple[tuple[float, ...], ...], tuple[Tensor, Tensor]] = {}

    def part(self, rows: Tensor, update: ColumnUpdate, delta_dim: int, kept: Tensor) -> Part:
        """One weight's share of what is moved.

        Args:
            rows: The weight's memory, connections first.
            update: What is added to its columns.
            delta_dim: The dimension of the update that counts connections.
            kept: Contiguous memory for the columns that are written over, connections first.

        Returns:
            The share.
        """
        delta = connections_first(update.delta.detach(), delta_dim)
        tensors = (rows, update.indices, kept, delta)
        pointers = [tensor.data_ptr() for tensor in tensors]
        return Part(self, (*kept.shape, *pointers, *rows.stride(), *delta.stride(), update.scaling), tensors)

    def put_in(self, parts: Sequence[Part]) -> None:
        """Keep `W₀[:, I]`, and write `W[:, I] = W₀[:, I] + s·Δ`."""
        self._launch(parts, puts_in=True)

    def put_back(self, parts: Sequence[Part]) -> None:
        """`W[:, I] = W₀[:, I]`."""
        self._launch(parts, puts_in=False)

    def _launch(self, parts: Sequence[Part], puts_in: bool) -> None:
        entries = tuple([part.entry for part in parts])
        columns, length = (max(entry[axis] for entry in entries) for axis in (0, 1))
        grid = (triton.cdiv(length, _ROWS), triton.cdiv(columns, _COLUMNS), len(entries))
        with nullcontext() if self.device.type == "cpu" else torch.get_device_module(self.device).device(self.device):
            launch(move_columns, grid, *self._table(entries), puts_in, self._weight, self._delta, self._sum)

    def _table(self, entries: tuple[tuple[float, ...], ...]) -> tuple[Tensor, Tensor]:
        """The table on the device; copied there when it is another one than those before."""
        table = self._tables.get(entries)
        if table is None:
            if len(self._tables) == _TABLES:
                del self._tables[next(iter(self._tables))]
            numbers = torch.tensor([entry[:-1] for entry in entries], dtype=torch.int64, device=self.device)
            scalings = torch.tensor([entry[-1] for entry in entries], dtype=torch.float64, device=self.device)
            table = self._tables[entries] = (numbers, scalings)
        return table


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    """Launch a kernel."""
    kernel[grid](*arguments, ROWS=_ROWS, COLUMNS=_COLUMNS)


def agreeing_kernels(rows: Tensor, update: ColumnUpdate) -> Kernels | None:
    """The kernels for a weight.

    Args:
        rows: The weight's memory, connections first.
        update: What is added to its columns.

    Returns:
        The kernels; None if they don't take it, or would set other bits than PyTorch's operators.
    """
    delta, indices = update.delta, update.indices
    takes_it = (
        rows.dim() == delta.dim() == 2
        and rows.dtype in _FLOATS
        and delta.dtype in _FLOATS
        and rows.device == delta.device == indices.device
        and indices.is_contiguous()
    )
    if not takes_it or not _agrees(rows.device, rows.dtype, delta.dtype, _is_exact(update.scaling)):
        return None
    return _kernels(rows.device, rows.dtype, delta.dtype)


@cache
def _kernels(device: torch.device, weight_dtype: torch.dtype, delta_dtype: torch.dtype) -> Kernels:
    return Kernels(device, weight_dtype, delta_dtype)


def _is_exact(scaling: float) -> bool:
    """Whether a product with the scaling is exact: then it makes no difference when it is rounded."""
    return abs(math.frexp(scaling)[0]) == 0.5


@cache
def _agrees(device: torch.device, weight_dtype: torch.dtype, delta_dtype: torch.dtype, exact: bool) -> bool:
    """Whether the kernels set the same bits as PyTorch's operators, tried on small weights; logged if not."""
    try:
        agrees = _sets_the_same_bits(_kernels(device, weight_dtype, delta_dtype), weight_dtype, delta_dtype, exact)
        problem = "it sets other bits than PyTorch's operators"
    except Exception as error:  # whatever a compiler or a driver raises
        agrees, problem = False, f"{type(error).__name__}: {error}"
    if not agrees:
        logger.warning(
            "Columns are written one weight after the other, since the Triton kernel for all of them can't be used "
            "on %s with %s weights and %s updates: %s",
            device,
            weight_dtype,
            delta_dtype,
            problem,
        )
    return agrees


def _sets_the_same_bits(kernels: Kernels, weight_dtype: torch.dtype, delta_dtype: torch.dtype, exact: bool) -> bool:
    parts, pretrained, adapted = [], [], []
    for length, connections, row_major in ((_ROWS + 3, _COLUMNS + 2, True), (5, 3, False)):
        numbers = torch.arange(length * 40, device=kernels.device, dtype=torch.float64)
        weight = (numbers * 0.7).sin().to(weight_dtype).view(length, 40)
        rows = weight.t() if row_major else weight.t().contiguous()
        indices = torch.arange(1, 2 * connections, 2, device=kernels.device)
        delta = (numbers * 1.3).cos().to(delta_dtype)[: length * connections].view(length, connections)
        update = ColumnUpdate(indices, delta, 2.0 if exact else 0.3)
        parts.append(kernels.part(rows, update, 1, rows.new_empty(connections, length)))
        pretrained += [rows.clone(), rows[indices]]
        adapted += [rows.index_copy(0, indices, adapted_columns(rows[indices], indices, (update,), 1)), rows[indices]]
    agrees: list[bool] = []
    for move, expected in ((kernels.put_in, adapted), (kernels.put_back, pretrained)):
        move(parts)
        found = [tensor for part in parts for tensor in (part.tensors[0], part.tensors[2])]
        agrees += map(same_bits, found, expected)
    return all(agrees)


@triton.jit
def move_columns(  # type: ignore[no-untyped-def]
    table,  # noqa: ANN001 - Triton would look the annotations up
    scalings,  # noqa: ANN001
    PUTS_IN: tl.constexpr,
    WEIGHT: tl.constexpr,
    DELTA: tl.constexpr,
    SUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Some columns of one weight, `COLUMNS` of them, at `ROWS` of their elements."""
    entry = table + tl.program_id(2) * 10
    connections, length = tl.load(entry), tl.load(entry + 1)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (column < connections) & (row < length)

    indices = tl.load(entry + 3).to(tl.pointer_type(tl.int64))
    index = tl.load(indices + column, mask=column < connections, other=0)
    weight = tl.load(entry + 2).to(tl.pointer_type(WEIGHT)) + index * tl.load(entry + 6) + row * tl.load(entry + 7)
    kept = tl.load(entry + 4).to(tl.pointer_type(WEIGHT)) + column * length + row
    if PUTS_IN:
        delta = tl.load(entry + 5).to(tl.pointer_type(DELTA)) + column * tl.load(entry + 8) + row * tl.load(entry + 9)
        pretrained = tl.load(weight, mask=inside)
        scaling = tl.load(scalings + tl.program_id(2)).to(SUM)
        adapted = pretrained.to(SUM) + scaling * tl.load(delta, mask=inside).to(SUM)
        tl.store(kept, pretrained, mask=inside)
        tl.store(weight, adapted.to(WEIGHT), mask=inside)
    else:
        tl.store(weight, tl.load(kept, mask=inside), mask=inside)
