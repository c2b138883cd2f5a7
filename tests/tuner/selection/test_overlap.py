"""What two selections have in common."""

import pytest
import torch

from paca.tuner.selection import random_connections
from paca.tuner.selection.overlap import overlap, overlap_by_chance


def test_the_overlap_is_the_share_of_all_layers_connections():
    first = {"one": torch.tensor([0, 1]), "two": torch.tensor([2, 3, 4, 5])}
    second = {"one": torch.tensor([1, 7]), "two": torch.tensor([4, 5, 6, 7])}
    assert overlap(first, second) == overlap(second, first) == 3 / 6
    assert overlap(first, first) == 1
    assert overlap(first, {"one": torch.tensor([8, 9]), "two": torch.tensor([0, 1, 6, 7])}) == 0


def test_chance_is_what_random_selections_have_in_common():
    sizes = {"one": 20, "two": 50}

    def draw(seed):
        return {name: random_connections(size, 10, seed + size) for name, size in sizes.items()}

    chance = overlap_by_chance(draw(0), sizes)
    assert chance == pytest.approx((10 * 10 / 20 + 10 * 10 / 50) / 20)
    shares = [overlap(draw(seed), draw(seed + 1000)) for seed in range(400)]
    assert sum(shares) / len(shares) == pytest.approx(chance, abs=0.02)
