"""Ranks, limits, operations, and what a killed process leaves."""

import math
import os
import signal

import pytest
import torch

from paca.errors import PacaError
from paca.workbench.base.search import largest_that_fits
from paca.workbench.compare.choice import Entry
from paca.workbench.compare.failures import KILLED
from paca.workbench.compare.limits import SEQUENCE_STEP, fits
from paca.workbench.compare.measures import error_of_median, nearest_rank, paired_ratios
from paca.workbench.compare.units import LONGEST, OPERATIONS, PROFILE, THROUGHPUT, Unit
from paca.workbench.compare.unrelated import unrelated_text
from paca.workbench.compare.worker import SubprocessWorker
from paca.workbench.methods.catalogue import METHODS as KNOWN
from paca.workbench.methods.catalogue import AdapterSetting

LIMIT = 2_000_000


def entry(name, rank=4):
    return Entry(name, KNOWN[name], AdapterSetting(rank))


def nothing(*_):
    pass


@pytest.mark.parametrize("most", range(1, 40))
def test_the_largest_that_fits_is_found(most):
    assert largest_that_fits(lambda number: -math.inf if number <= most else math.inf, 1, 39) == most


def test_nothing_fits():
    assert largest_that_fits(lambda number: math.inf, 1, 8) == 0


@pytest.mark.parametrize(("wanted", "rank"), [(100, 10), (104, 10), (105, 10), (106, 11), (1, 1), (10_000, 64)])
def test_the_nearest_rank_is_found(wanted, rank):
    assert nearest_rank(wanted, lambda rank: 10 * rank, most=64) == rank


def test_a_slow_spell_cancels_from_the_ratios():
    speeds = [1.0, 1.0, 3.0, 2.0, 1.0]
    floors = [(10 * speed, 12 * speed) for speed in speeds]
    assert paired_ratios([22 * speed for speed in speeds], floors) == pytest.approx([2.0] * 5)


def test_the_error_of_a_median_is_how_far_medians_of_many_samples_are_spread():
    samples = torch.randn(2000, 41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = samples.median(dim=1).values.std()
    estimated = [error_of_median(sample) for sample in samples.tolist()]
    assert sum(estimated) / len(estimated) == pytest.approx(float(spread), rel=0.1)
    assert error_of_median([1.0]) == 0
    assert error_of_median([1.0, 1.1, 0.9, 1.0, 50.0]) < 0.1, "one slow round does not count"


def test_operations_of_a_step(here):
    counted = {
        name: here.run(Unit(OPERATIONS, (entry(name),), {}), nothing) for name in ("frozen", "paca", "lora", "full")
    }
    assert counted["paca"]["forward"] == counted["frozen"]["forward"] < counted["lora"]["forward"]
    assert counted["frozen"]["backward"] < counted["paca"]["backward"] < counted["lora"]["backward"]
    assert counted["paca"]["backward"] < counted["full"]["backward"]
    assert all(set(found) == {"forward", "backward"} for found in counted.values()), "no time that was not in turns"


def test_backward_of_the_upper_half_is_measured_as_it_is_trained(here):
    half = Entry("paca", KNOWN["paca"], AdapterSetting(4, blocks="upper-half"))
    given = Entry("lora(…)", KNOWN["lora"], AdapterSetting(4, arguments={"layers_to_transform": "upper-half"}))
    floor, *upper = (here.run(Unit(OPERATIONS, (of,), {}), nothing) for of in (entry("frozen"), half, given))
    assert all(found["backward"] < 0.75 * floor["backward"] for found in upper)
    assert upper[0]["forward"] == floor["forward"]


def test_the_longest_sequence_fits_and_the_next_does_not(here):
    job = Unit(LONGEST, (entry("paca"),), {"limit": LIMIT})
    found = here.run(job, nothing)
    tokens = found["tokens"]
    assert 0 < tokens < 128, found
    assert max(found["peak_bytes"].values()) <= LIMIT
    assert fits(here._workload, job, (1, tokens), {})
    assert not fits(here._workload, job, (1, tokens + SEQUENCE_STEP), {})
    assert here.run(Unit(LONGEST, (entry("paca"),), {"limit": 1000}), nothing)["tokens"] == 0
    assert here.run(Unit(LONGEST, (entry("paca"),), {"limit": 10**9}), nothing)["all_positions"]


def test_throughput_is_timed_up_to_the_largest_batch(here):
    found = here.run(Unit(THROUGHPUT, (entry("paca"),), {"limit": LIMIT, "rounds": 1, "tokens": 16}), nothing)
    sizes = [point["sequences"] for point in found["points"]]
    assert sizes[0] == 1
    assert sizes == sorted(set(sizes))
    assert all(point["peak_bytes"] <= LIMIT and point["tokens_per_second"] > 0 for point in found["points"])


def test_the_text_to_show_forgetting_on(tmp_path):
    assert len(unrelated_text(None)) > 2000
    own = tmp_path / "own.txt"
    own.write_text("words")
    assert unrelated_text(str(own)) == "words"
    with pytest.raises(PacaError, match="can't be read as UTF-8 text"):
        unrelated_text(str(tmp_path / "none.txt"))
    own.write_text(" ")
    with pytest.raises(PacaError, match="is empty; name a text"):
        unrelated_text(str(own))


@pytest.mark.slow
def test_a_killed_process_costs_one_unit_and_the_next_runs_in_a_new_one(recipe):
    worker = SubprocessWorker(recipe)
    job = Unit(PROFILE, (entry("paca"),), {"limit": None})
    try:
        killed = worker.run(job, lambda *news: os.kill(worker._process.pid, signal.SIGKILL))
        assert killed == {"error": KILLED, "out_of_memory": True}
        assert worker.run(job, nothing)["peak_bytes"] > 0
    finally:
        worker.close()
