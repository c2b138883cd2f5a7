"""Bytes of live storages, checked against sums done by hand."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from paca.profiling import track

KIB = 1024


def floats(kib: int, device: str = "cpu") -> torch.Tensor:
    """A float32 tensor of so many KiB."""
    return torch.ones(kib * KIB // 4, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_counts_from_its_making_to_its_end(device):
    with track() as tracker:
        assert (tracker.live_bytes, tracker.peak_bytes) == (0, 0)
        x = floats(4, device)
        assert tracker.live_bytes == 4 * KIB
        del x
        assert tracker.live_bytes == 0
    assert tracker.peak_bytes == 4 * KIB


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_of_a_chain_is_two_of_its_links(device):
    with track() as tracker:
        x = floats(4, device)
        for _ in range(5):
            x = x + 1
        assert tracker.live_bytes == 4 * KIB
    assert tracker.peak_bytes == 8 * KIB


def test_peak_of_a_chain_that_keeps_its_links():
    with track() as tracker:
        links = [floats(4)]
        links.extend(links[-1] + 1 for _ in range(5))
        assert tracker.peak_bytes == tracker.live_bytes == 20 * KIB + 4 * KIB


def test_views_detached_and_in_place_results_do_not_count_again():
    with track() as tracker:
        x = floats(4)
        views = [x[:10], x.view(-1, 4).t(), x.detach(), x.expand(3, -1), x.add_(1), x.unsqueeze(0).squeeze()]
        assert tracker.peak_bytes == 4 * KIB
        del x
        assert tracker.live_bytes == 4 * KIB, "a view holds the whole storage"
        views.clear()
        assert tracker.live_bytes == 0


def test_a_small_view_holds_the_whole_storage_and_a_copy_does_not():
    with track() as tracker:
        part = floats(4)[:16]
        assert tracker.live_bytes == 4 * KIB
        part = part.clone()
        assert tracker.live_bytes == 64


def test_what_existed_before_is_not_counted():
    before = floats(4)
    with track() as tracker:
        view = before[:10].detach()
        before.mul_(2)
        assert tracker.peak_bytes == 0
        after = before * 2
        del before, view
        assert tracker.live_bytes == after.nbytes == 4 * KIB


def test_what_existed_before_is_counted_when_included():
    layer = nn.Linear(8, 16)
    layer.register_buffer("mask", torch.ones(4))
    layer(torch.ones(1, 8)).sum().backward()
    parameters = (8 * 16 + 16) * 4
    with track(include=layer) as tracker:
        assert tracker.live_bytes == 2 * parameters + 16
        layer.zero_grad()
        assert tracker.live_bytes == parameters + 16


def test_included_tensors_that_share_a_storage_count_once():
    x = floats(4)
    with track(include=[x, x[:10], x.t()]) as tracker:
        assert tracker.live_bytes == 4 * KIB
    with track(include=x) as tracker:
        assert tracker.live_bytes == 4 * KIB


def test_including_something_else_is_refused_with_what_to_pass():
    with pytest.raises(TypeError, match=r"got a str among .* pass a module, or an iterable of tensors"):
        track(include=["weight"])


def test_tensors_made_from_python_numbers_count():
    with track() as tracker:
        x = torch.tensor([1.0, 2.0, 3.0])
        assert tracker.live_bytes == x.nbytes == 12


def test_a_training_step_is_counted_to_the_byte():
    layer = nn.Linear(64, 32, bias=False)
    weight = 64 * 32 * 4
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)
    x = torch.ones(4, 64)
    with track() as tracker:
        loss = layer(x).sum()
        loss.backward()
        assert tracker.live_bytes == loss.nbytes + weight, "the loss and the gradient"
        optimizer.step()
        moments, step = 2 * weight, 4
        assert tracker.live_bytes == loss.nbytes + weight + moments + step
        layer.zero_grad()
        assert tracker.live_bytes == loss.nbytes + moments + step


def test_backward_is_seen():
    x = torch.ones(KIB, requires_grad=True)
    y = x.exp()
    with track() as tracker:
        y.sum().backward()
        assert tracker.live_bytes == x.grad.nbytes == 4 * KIB


def test_a_reference_cycle_holds_its_storage_until_the_collector_ran():
    class Holder:
        pass

    gc.collect()
    gc.disable()
    try:
        with track() as tracker:
            holder = Holder()
            holder.itself, holder.tensor = holder, floats(4)
            del holder
            assert tracker.live_bytes == 4 * KIB
            gc.collect()
            assert tracker.live_bytes == 0
    finally:
        gc.enable()


def test_leaving_the_block_ends_counting_but_not_the_books():
    with track() as tracker:
        x = floats(4)
    y = floats(4)
    assert tracker.live_bytes == tracker.peak_bytes == 4 * KIB
    del x
    assert tracker.live_bytes == 0
    assert y is not None


def test_reset_peak_starts_again_from_what_lives():
    with track() as tracker:
        x = floats(4)
        floats(8)
        assert tracker.peak_bytes == 12 * KIB
        tracker.reset_peak()
        assert tracker.peak_bytes == 4 * KIB == x.nbytes


def test_nested_blocks_count_each_for_itself():
    with track() as outer:
        x = floats(4)
        with track() as inner:
            y = x + 1
        assert inner.live_bytes == y.nbytes
        assert outer.live_bytes == x.nbytes + y.nbytes


def test_a_resized_storage_counts_at_its_new_size():
    with track() as tracker:
        x = floats(4)
        x.resize_(4 * KIB)
        assert tracker.live_bytes == 16 * KIB == x.untyped_storage().nbytes()


def test_sparse_gradients_count_their_parts():
    table = nn.Embedding(100, 16, sparse=True)
    token = torch.tensor([1, 2, 3])
    with track() as tracker:
        table(token).sum().backward()
        grad = table.weight.grad
        assert tracker.live_bytes == grad._values().nbytes + grad._indices().nbytes == 3 * 16 * 4 + 3 * 8


def test_a_wrapper_subclass_counts_what_it_wraps():
    with track() as tracker:
        pair = TwoTensor(floats(4), floats(4))
        assert tracker.live_bytes == 8 * KIB
        double = pair * 2
        assert tracker.live_bytes == 16 * KIB
        del pair
        assert tracker.live_bytes == 8 * KIB
        del double
        assert tracker.live_bytes == 0


def test_what_a_wrapper_subclass_allocates_on_the_way_is_seen():
    class Wasteful(TwoTensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args, kwargs=None):
            floats(16)
            return super().__torch_dispatch__(func, types, args, kwargs)

    pair = Wasteful(floats(4), floats(4))
    with track() as tracker:
        pair * 2
    assert tracker.peak_bytes == 16 * KIB


def test_many_short_lives_leave_nothing_in_the_books():
    with track() as tracker:
        for _ in range(1000):
            floats(1)
        assert tracker.live_bytes == 0
        assert tracker.peak_bytes == KIB
    assert not tracker._references
    assert not tracker._counted


def test_the_tracker_keeps_no_tensor_alive():
    with track():
        x = floats(4)
        reference = weakref.ref(x)
        del x
        assert reference() is None


def test_a_storage_resized_outside_of_operators_counts_at_its_new_size():
    with track() as tracker:
        x = floats(16)
        x.untyped_storage().resize_(0)
        assert tracker.live_bytes == 0
        x.untyped_storage().resize_(16 * KIB)
        assert tracker.live_bytes == 16 * KIB
    x.untyped_storage().resize_(0)
    assert tracker.live_bytes == 16 * KIB
