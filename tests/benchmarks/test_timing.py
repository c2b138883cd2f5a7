"""Everything is timed in turns, after it has been warmed up."""

from timing import time_in_turns


def test_all_are_warmed_up_and_then_take_turns(capsys):
    order = []
    runs = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    times = time_in_turns(runs, rounds=3, title="8 tokens")
    assert "".join(order) == "aabb" + "ab" + "ba" + "ab"
    assert times == {"a": [5.0, 8.0, 9.0], "b": [6.0, 7.0, 10.0]}
    assert "8 tokens: round 3 of 3, 0 s left" in capsys.readouterr().err
