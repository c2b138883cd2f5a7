"""The largest scores, singly and in runs."""

import pytest
import torch

from paca.tuner.selection.choose import largest


@pytest.mark.parametrize(
    ("scores", "r", "run_length", "expected"),
    [
        ([3, 1, 4, 1, 5, 9, 2, 6], 3, 1, [4, 5, 7]),
        ([1, 1, 1, 1], 2, 1, [0, 1]),  # of equal ones the first
        ([9, 0, 0, 5, 5, 0, 0, 0], 2, 2, [0, 1]),
        ([4, 0, 3, 3, 0, 0, 9, 9], 4, 2, [2, 3, 6, 7]),  # sums, not the largest single ones
        ([0, 0, 0, 0, 99], 2, 2, [0, 1]),  # behind the last whole run
    ],
)
def test_the_largest_are_chosen_in_ascending_order(scores, r, run_length, expected):
    chosen = largest(torch.tensor(scores, dtype=torch.float32), r, run_length)
    assert chosen.tolist() == expected
    assert chosen.dtype == torch.int64


@pytest.mark.parametrize(
    ("taken", "expected"),
    [([7, 5], [2, 4]), ([0, 1, 2, 3, 4, 5, 6], [5, 7])],
    ids=["untouched ones first", "too few are left"],
)
def test_touched_connections_come_last(taken, expected):
    scores = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6])
    assert largest(scores, 2, visited=torch.tensor(taken)).tolist() == expected


def test_a_run_with_one_touched_connection_is_touched():
    scores = torch.tensor([9.0, 9, 5, 5, 1, 1])
    assert largest(scores, 2, 2, visited=torch.tensor([0])).tolist() == [2, 3]
