"""Which method is the best of a column, and where none is."""

import math
import statistics

import pytest

from paca.workbench.compare.columns import COLUMNS
from paca.workbench.compare.noise import apart, best, pareto, standard_error

pytestmark = pytest.mark.road("comparisons")
BY_KEY = {column.key: column for column in COLUMNS}
OVER_SEEDS = ("loss", "accuracy", "forgotten")
IN_TURNS = ("step_ms", "to_floor", "tokens_per_second")
EXACT = ("kept_bytes", "peak_bytes", "file_bytes", "max_tokens")


def found(method, loss, peak_bytes, **more):
    return {"method": method, "loss": loss, "peak_bytes": peak_bytes, **more}


def rows(key, *values, error=0.0):
    """One row per value; what is better is known to `BY_KEY`."""
    name = BY_KEY[key].error
    return [{"method": "abcdef"[place], "loss": 1.0, key: value, name: error} for place, value in enumerate(values)]


def test_the_columns_of_each_kind():
    assert {column.key for column in COLUMNS if column.learnt} == set(OVER_SEEDS)
    assert {column.key for column in COLUMNS if column.timed} == set(IN_TURNS)
    assert {column.key for column in COLUMNS if column.best and not column.error} == set(EXACT)
    crownless = {"rank", "steps", "trained_parameters", "rate", "merge_ms", "latency_ms", "merged_latency_ms"}
    assert {column.key for column in COLUMNS if column.best is None} == crownless


def test_the_best_is_the_lowest_or_the_highest_and_the_floor_takes_no_part():
    some = [
        found("frozen", 0.5, 1, accuracy=0.9),
        found("a", 2.0, 10 * 2**20, accuracy=0.1),
        found("b", 1.0, 10 * 2**20, accuracy=0.4),
        found("c", 3.0, 20 * 2**20, accuracy=0.2),
    ]
    assert best(some) == {"loss": ["b"], "peak_bytes": ["a", "b"], "accuracy": ["b"]}
    assert best(some[:2]) == {}, "nothing is best where nothing is compared"


@pytest.mark.parametrize("key", [*OVER_SEEDS, *IN_TURNS])
@pytest.mark.parametrize("errors", [1.9, 2.9, 100])
def test_within_two_standard_errors_of_both_nobody_is_the_best(key, errors):
    worse, better = (1.0, 1.5) if BY_KEY[key].best is max else (1.5, 1.0)
    if key == "tokens_per_second":
        worse, better = 1000 * worse, 1000 * better
    distance = abs(worse - better)
    two = rows(key, better, worse, error=distance / errors)
    assert best(two)[key] == (["a"] if errors > 2 * math.sqrt(2) else [])
    third = rows(key, better, worse, better + 10 * (worse - better), error=distance / errors)
    assert best(third)[key] == (["a"] if errors > 2 * math.sqrt(2) else ["a", "b"])


@pytest.mark.parametrize("key", OVER_SEEDS)
def test_one_seed_makes_nobody_the_best(key):
    assert best(rows(key, 0.1, 0.9, error=None))[key] == []
    assert best(rows(key, 0.1, 0.9))[key]


@pytest.mark.parametrize("key", IN_TURNS)
@pytest.mark.parametrize("noise", [None, 1.0, 1.05, 0.95, 1.3, 0.7])
def test_times_closer_than_the_floors_are_the_same(key, noise):
    two = rows(key, 1000.0, 1100.0)
    differ = noise is None or abs(noise - 1) < 0.1
    assert bool(best(two, noise)[key]) == differ
    assert best(rows("peak_bytes", 1e9, 1.1e9), noise)["peak_bytes"] == ["a"], "bytes have no noise"


@pytest.mark.parametrize("key", [*OVER_SEEDS, *IN_TURNS, *EXACT])
def test_what_prints_alike_is_alike(key):
    value = 1.0 if key in ("loss", "forgotten", "accuracy", "to_floor") else 1e6
    two = rows(key, value, value * (1 + 1e-9))
    assert BY_KEY[key].format(two[0][key]) == BY_KEY[key].format(two[1][key])
    assert not apart(BY_KEY[key], *two)
    assert best(two)[key] == []


@pytest.mark.parametrize("key", OVER_SEEDS)
def test_who_learned_nothing_is_never_the_best(key):
    still, learned = {"loss_before": 3.0, "loss": 3.00002}, {"loss_before": 3.0, "loss": 2.0}
    value, other = (0.9, 0.1) if BY_KEY[key].best is max else (0.0, 0.5)
    two = [{"method": "idle", **still, key: value}, {"method": "busy", **learned, key: other}]
    if key == "loss":
        two = [{"method": "idle", **still}, {"method": "busy", **learned}]
    assert best(two)[key] == ["busy"]
    idle = [{**row, "loss": 3.0 + place} for place, row in enumerate(two)]
    assert best(idle)[key] == [], "frozen weights would have done as well"


def test_the_error_of_a_mean():
    assert standard_error([1.0]) is None
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == statistics.stdev([1, 2, 3, 4]) / 2


def test_the_front_holds_what_no_other_beats_in_both():
    some = [found("a", 2.0, 10), found("b", 1.0, 20), found("c", 1.5, 30), found("d", 3.0, 5), found("e", None, 1)]
    assert pareto(some) == ["d", "a", "b"]
    assert pareto([found("a", 2.0, 10), found("b", 2.0, 10)]) == ["a"]
    assert pareto([found("a", math.nan, 10)]) == []
    timed = [{**row, "seconds": seconds} for row, seconds in zip(some, (4, 3, 2, 1, 0), strict=True)]
    assert pareto(timed, "seconds") == ["d", "c", "b"]


@pytest.mark.parametrize(("error", "front"), [(0.01, ["a", "b"]), (0.5, ["a"]), (None, ["a", "b"])])
def test_a_loss_that_is_lower_within_noise_is_not_worth_more_memory(error, front):
    assert pareto([found("a", 2.0, 10, loss_error=error), found("b", 1.5, 20, loss_error=error)]) == front
