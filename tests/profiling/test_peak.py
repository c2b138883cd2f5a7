import pytest
import torch
from torch import nn

from paca.profiling import StepTracker


def step(block=1):
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x = torch.ones(8, 16)
    with StepTracker(model, optimizer, [x], block) as tracker:
        for _ in range(2):
            tracker.reset_peak()
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return tracker, tracker.peak()


def test_the_categories_make_the_peak():
    tracker, peak = step()
    assert sum(peak.by_category.values()) == peak.total == tracker.peak_bytes
    weights = (16 * 32 + 32 * 4) * 4
    assert peak.by_category["parameters"] == weights + 8 * 16 * 4
    assert peak.by_category["optimizer"] == 2 * weights + 2 * 4
    assert peak.by_category["gradients"] > 0


def test_a_forward_pass_that_is_the_peak_names_phase_and_module():
    model = nn.Sequential(nn.Linear(4, 1000, bias=False), nn.Linear(1000, 4, bias=False))
    with StepTracker(model) as tracker:
        model(torch.ones(500, 4))
    peak = tracker.peak()
    assert (peak.phase, peak.module) == ("forward", "1")


def test_backward_is_told_from_the_module_that_it_belongs_to():
    model = nn.Sequential(nn.Linear(4, 100, bias=False), nn.Linear(100, 1, bias=False))
    x = torch.ones(500, 4, requires_grad=True)
    with StepTracker(model) as tracker:
        y = model(x).sum()
        tracker.reset_peak()
        y.backward()
    peak = tracker.peak()
    assert peak.phase == "backward"
    assert peak.module in ("0", "1")
    assert peak.by_category["activations"] > 0


@pytest.mark.parametrize("block", [512, 4096])
def test_rounding_counts_whole_blocks(block):
    exact, rounded = step()[1], step(block)[1]
    assert rounded.total % block == 0
    assert rounded.total > exact.total


def test_the_hooks_go_with_the_block():
    tracker, before = step()
    nn.Linear(1000, 1000)(torch.ones(1000, 1000))
    assert tracker.peak() == before
