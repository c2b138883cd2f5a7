"""Steps are taken in turns, and their times summed up so that other work on the machine counts least."""

from paca.profiling.environment import cpu_name
from paca.profiling.steps import StepTime, interleave, lower_quartile


def test_the_lower_quartile_ignores_what_other_work_adds():
    assert lower_quartile([9.0, 1.0, 2.0, 8.0]) == 2.0
    assert lower_quartile([1.0] * 4 + [100.0] * 13) == 100.0
    assert lower_quartile([1.0] * 5 + [100.0] * 12) == 1.0
    assert lower_quartile([3.0]) == 3.0


def test_every_other_round_goes_backwards():
    order = []
    steps = {name: lambda name=name: order.append(name) or StepTime(0.0, 0.0, 0.0) for name in "abc"}
    times = interleave(steps, rounds=3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_processor_is_named(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor : 0\nmodel name : Some CPU @ 3 GHz\n")
    assert cpu_name(listing) == "Some CPU @ 3 GHz"
    assert cpu_name(tmp_path / "absent")
