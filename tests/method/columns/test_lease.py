"""Columns are in a weight while somebody holds a lease on them; after that, every bit is the pretrained one."""

import gc
import threading
import time

import pytest
import torch
from tests.method.columns.made import IN, adapted, make, update

from paca.method.columns import lease as leases
from paca.method.columns.lease import Lease, make_pretrained
from paca.method.columns.resident import Columns

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _nothing_stays():
    """No test leaves columns in a weight."""
    yield
    gc.collect()
    assert not leases._INSIDE


@pytest.mark.parametrize("connection_dim", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_in_while_it_is_lent_and_every_bit_comes_back(dtype, connection_dim):
    weight, columns = make(dtype, connection_dim)
    before = weight.clone()
    updates = (update(1, 4, 9, scaling=0.7),)
    loan = columns.lend(weight, updates)
    with loan as lent:
        assert lent is weight
        assert not torch.equal(weight, before)
        torch.testing.assert_close(weight, adapted(before, updates, connection_dim))
    assert not torch.equal(weight, before)  # held for backward
    del loan
    assert torch.equal(weight, before)


def test_other_columns_are_left_alone():
    weight, columns = make()
    before = weight.clone()
    loan = columns.lend(weight, (update(1, 4),))
    others = [i for i in range(IN) if i not in (1, 4)]
    assert torch.equal(weight[:, others], before[:, others])
    assert not torch.equal(weight, before)
    del loan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_that_share_columns_add_up(dtype):
    weight, columns = make(dtype)
    before = weight.clone()
    updates = (update(1, 4, 9), update(0, 4, 5, 9, scaling=3.0))
    with columns.lend(weight, updates):
        torch.testing.assert_close(weight, adapted(before, updates))
    assert torch.equal(weight, before)


def test_retired_columns_lie_below_those_that_are_trained():
    weight, columns = make(torch.bfloat16)
    before = weight.clone()
    updates = (update(1, 4), update(4, 5)._replace(retired=True))
    with columns.lend(weight, updates):
        torch.testing.assert_close(weight, adapted(before, updates), rtol=0.02, atol=0.02)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("change", ["in place", "through data", "new memory"])
def test_each_grant_writes_from_the_update_of_now(change):
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    with columns.lend(weight, updates):
        first = weight.clone()
    delta = updates[0].delta
    with torch.no_grad():
        if change == "in place":
            delta.mul_(2)
        elif change == "through data":
            delta.data.copy_(delta.data * 2)
        else:
            delta.data = delta.data * 2
    with columns.lend(weight, updates):
        torch.testing.assert_close(weight, adapted(before, updates))
        assert not torch.equal(weight, first)
    assert torch.equal(weight, before)


def test_a_weight_that_somebody_wrote_between_calls_is_read_anew():
    weight, columns = make()
    updates = (update(1, 4),)
    with columns.lend(weight, updates):
        pass
    with torch.no_grad():
        weight.fill_(3)
    before = weight.clone()
    with columns.lend(weight, updates):
        torch.testing.assert_close(weight, adapted(before, updates))
    assert torch.equal(weight, before)


def test_two_forwards_of_one_update_share_a_lease():
    weight, columns = make()
    updates = (update(1, 4),)
    first = columns.lend(weight, updates)
    second = columns.lend(weight, updates)
    assert first.lease is second.lease
    with torch.no_grad():
        updates[0].delta.add_(1)
    third = columns.lend(weight, updates)
    assert third.lease is not first.lease


def test_one_lease_has_the_columns_of_many_weights():
    (one, of_one), (other, of_other) = make(), make()
    before = one.clone(), other.clone()
    lease = Lease()
    loans = [of_one.lend(one, (update(1),), lease=lease), of_other.lend(other, (update(2),), lease=lease)]
    del lease
    loans.pop(0)
    assert not torch.equal(one, before[0])  # the other's loan holds both
    loans.pop()
    assert torch.equal(one, before[0])
    assert torch.equal(other, before[1])


def test_backward_finds_the_columns_of_its_forward():
    weight, columns = make()
    before = weight.clone()
    policy, other = (update(1, 4),), (update(4, 5),)
    pending = columns.lend(weight, policy)
    with columns.lend(weight, other):
        torch.testing.assert_close(weight, adapted(before, other))
    with columns.lend(weight, ()):
        assert torch.equal(weight, before)
    with pending:
        torch.testing.assert_close(weight, adapted(before, policy))
    del pending
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bumps", [True, False])
def test_columns_that_do_not_exist_any_more_are_an_error_not_a_wrong_product(bumps):
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    pending = columns.lend(weight, updates)
    make_pretrained(weight)
    delta = updates[0].delta
    with torch.no_grad():
        delta.add_(1) if bumps else delta.data.add_(1)
    with pytest.raises(RuntimeError, match="changed before its backward pass"), pending:
        pass
    assert torch.equal(weight, before)


def test_whoever_reads_the_weight_as_a_whole_may_have_the_columns_taken_out():
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    loan = columns.lend(weight, updates)
    assert torch.equal(columns.pretrained_columns(weight, torch.tensor([0, 4])), before[:, [0, 4]].t())
    assert torch.equal(weight, before)
    with loan:
        torch.testing.assert_close(weight, adapted(before, updates))


def test_values_that_are_not_finite_come_and_go():
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    with torch.no_grad():
        updates[0].delta.fill_(float("nan"))
    loan = columns.lend(weight, updates)
    make_pretrained(weight)
    assert torch.equal(weight, before)
    with loan:
        assert weight[:, [1, 4]].isnan().all()


def test_written_for_good_until_it_is_restored():
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    kept = columns.write(weight, updates)
    torch.testing.assert_close(weight, adapted(before, updates))
    columns.restore(weight, kept)
    assert torch.equal(weight, before)


def test_a_second_keeper_of_one_memory_takes_turns_with_the_first():
    weight, columns = make()
    before = weight.clone()
    other = Columns(1, 1)
    mine, theirs = (update(1, 4),), (update(4, 5),)
    pending = columns.lend(weight, mine)
    with other.lend(weight, theirs):
        torch.testing.assert_close(weight, adapted(before, theirs))
    with pending:
        torch.testing.assert_close(weight, adapted(before, mine))
    del pending
    assert torch.equal(weight, before)


@pytest.mark.parametrize("twin", ["detach", "data", "view"])
def test_a_twin_over_the_same_memory_meets_columns_during_products_only(twin):
    weight, columns = make()
    before = weight.clone()
    other = {"detach": weight.detach, "data": lambda: weight.data, "view": lambda: weight.detach().view(-1)}[twin]()
    updates = (update(1, 4),)
    loan = columns.lend(weight, updates)
    assert torch.equal(other.flatten(), before.flatten())
    with loan:
        torch.testing.assert_close(weight, adapted(before, updates))
    assert torch.equal(other.flatten(), before.flatten())
    wanted = adapted(before, updates)
    with torch.no_grad():
        updates[0].delta.add_(1)
    with loan:  # backward needs the columns of its forward
        torch.testing.assert_close(weight, wanted)


def test_memory_that_other_processes_share_is_not_written():
    weight, columns = make()
    weight.share_memory_()
    assert columns.lend(weight, (update(1, 4),)) is None


def test_another_thread_that_needs_other_columns_gets_a_copy():
    weight, columns = make()
    before = weight.clone()
    mine, theirs = (update(1, 4),), (update(4, 5),)
    got = []

    def elsewhere(updates):
        with columns.lend(weight, updates) as adapted_weight:
            got.append((adapted_weight is weight, adapted_weight.clone()))

    with columns.lend(weight, mine):
        for updates in (theirs, ()):
            thread = threading.Thread(target=elsewhere, args=(updates,))
            thread.start()
            thread.join(timeout=60)
            assert not thread.is_alive()
        torch.testing.assert_close(weight, adapted(before, mine))
    assert [own for own, _ in got] == [False, False]
    torch.testing.assert_close(got[0][1], adapted(before, theirs))
    assert torch.equal(got[1][1], before)
    assert torch.equal(weight, before)


def test_another_thread_that_needs_the_same_columns_shares_them():
    weight, columns = make()
    updates = (update(1, 4),)
    got = []

    def elsewhere():
        with columns.lend(weight, updates) as adapted_weight:
            got.append(adapted_weight is weight)

    with columns.lend(weight, updates):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(timeout=60)
    assert got == [True]


def read_elsewhere(columns, weight):
    """A thread that reads the pretrained columns, and what it has read."""
    got = []
    thread = threading.Thread(target=lambda: got.append(columns.pretrained_columns(weight, torch.tensor([1, 4]))))
    thread.start()
    return thread, got


def test_who_reads_the_weight_waits_for_the_calls_of_other_threads():
    weight, columns = make()
    before = columns.pretrained_columns(weight, torch.tensor([1, 4]))
    updates = (update(1, 4),)
    pretrained = weight.clone()
    with columns.lend(weight, updates):
        thread, got = read_elsewhere(columns, weight)
        thread.join(timeout=0.2)
        assert thread.is_alive()
        torch.testing.assert_close(weight, adapted(pretrained, updates))
    thread.join(timeout=60)
    assert torch.equal(got[0], before)


def test_two_calls_that_read_what_the_other_computes_with_do_not_wait_for_each_other():
    weight, columns = make()
    updates = (update(1, 4),)
    expected = adapted(weight.clone(), updates)
    both_are_in = threading.Barrier(2)
    got = []

    def call():
        with columns.lend(weight, updates) as adapted_weight:
            both_are_in.wait(timeout=60)
            columns.pretrained_columns(weight, torch.tensor([1, 4]))
            both_are_in.wait(timeout=60)
            got.append(adapted_weight.clone())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    for found in got:
        torch.testing.assert_close(found, expected)


def test_who_has_waited_long_enough_is_told_for_what(monkeypatch):
    monkeypatch.setattr(leases, "PATIENCE", 0.1)
    weight, columns = make()
    got = []

    def read():
        with pytest.raises(RuntimeError, match="Another thread has been computing with an adapted weight"):
            columns.pretrained_columns(weight, torch.tensor([1]))
        got.append(True)

    with columns.lend(weight, (update(1, 4),)):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(timeout=60)
    assert got == [True]


def test_a_lease_that_is_ending_is_not_taken_up_again():
    """While its end waited for the lock, another thread got it once more; nobody took the columns out after that."""
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    holders = [columns.lend(weight, updates)]
    ending = threading.Thread(target=holders.clear)
    with leases._LOCK:
        ending.start()
        while holders:
            time.sleep(0.001)
        time.sleep(0.05)  # it waits for the lock by now
        loan = columns.lend(weight, updates)
    ending.join(timeout=60)
    with loan as lent:
        torch.testing.assert_close(lent, adapted(before, updates))
    del loan, lent
    assert torch.equal(weight, before)
