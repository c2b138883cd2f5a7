"""Columns that lie side by side are read and written as one block, and are the same columns."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from paca.method.columns.block import Block, put, take

CONNECTIONS = {
    "side by side": [3, 4, 5, 6],
    "one": [2],
    "all": list(range(9)),
    "apart": [0, 3, 5],
    "as many as a run, but not one": [1, 1, 3],
    "not ascending": [4, 2, 3, 5],
    "none": [],
}
LAYOUTS = {"row-major": lambda rows: rows.t().contiguous().t(), "connection-major": lambda rows: rows}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def rows(request: pytest.FixtureRequest) -> Tensor:
    """The memory of a weight of shape (5, 9), connections first."""
    return request.param(torch.arange(45.0).reshape(9, 5))


@pytest.mark.parametrize("connections", CONNECTIONS.values(), ids=CONNECTIONS)
def test_read(rows: Tensor, connections: list[int]) -> None:
    indices = torch.tensor(connections, dtype=torch.int64)
    found = take(rows, Block().of(indices))
    assert torch.equal(found, rows[indices])
    assert found.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()


@pytest.mark.parametrize("connections", CONNECTIONS.values(), ids=CONNECTIONS)
def test_read_into_memory_at_hand(rows: Tensor, connections: list[int]) -> None:
    indices = torch.tensor(connections, dtype=torch.int64)
    out = torch.empty(len(connections), 5)
    assert take(rows, Block().of(indices), out) is out
    assert torch.equal(out, rows[indices])


@pytest.mark.parametrize("connections", [c for c in CONNECTIONS.values() if len(set(c)) == len(c)])
def test_written(rows: Tensor, connections: list[int]) -> None:
    indices = torch.tensor(connections, dtype=torch.int64)
    values, expected = torch.randn(len(connections), 5), rows.clone()
    expected[indices] = values
    put(rows, Block().of(indices), values)
    assert torch.equal(rows, expected)


def test_a_block_has_the_layout_of_its_weight() -> None:
    """Or every copy of one would be a transposition."""
    rows = LAYOUTS["row-major"](torch.arange(45.0).reshape(9, 5))
    assert take(rows, slice(2, 6)).t().is_contiguous()


@pytest.mark.parametrize(("connections", "consecutive"), [([3, 4, 5], True), ([3, 5, 6], False), ([], False)])
def test_what_is_a_block(connections: list[int], consecutive: bool) -> None:
    assert isinstance(Block().of(torch.tensor(connections, dtype=torch.int64)), slice) is consecutive


def test_indices_that_are_changed_are_looked_at_again() -> None:
    block, indices = Block(), torch.tensor([3, 4, 5])
    assert block.of(indices) == slice(3, 6)
    indices.copy_(torch.tensor([0, 4, 5]))
    assert block.of(indices) is indices
    assert block.of(torch.tensor([6, 7])) == slice(6, 8)


def test_indices_of_inference_mode() -> None:
    with torch.inference_mode():
        indices = torch.tensor([3, 4, 5])
    assert Block().of(indices) == slice(3, 6)


def test_fake_indices_are_not_looked_at() -> None:
    with FakeTensorMode():
        indices = torch.arange(3)
        assert Block().of(indices) is indices
