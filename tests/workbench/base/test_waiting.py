"""Where a terminal would stay still, a line says what is done; whatever else is written takes it away."""

import io
import time

import pytest

from paca.workbench.base import waiting
from paca.workbench.base.waiting import BAR, CLEAR, expect, signs_of_life, stage, still
from paca.workbench.cli.streams import LastingStream


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def streams(monkeypatch):
    monkeypatch.setattr(waiting, "SILENCE", 0.05)
    return LastingStream(Terminal()), LastingStream(Terminal())


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_line_says_what_is_done_and_goes_away(streams):
    out, err = streams
    with signs_of_life(out, err):
        stage("reading the data")
        wait_for(lambda: f"{CLEAR}reading the data … 0 s" in err.getvalue() or "… 1 s" in err.getvalue())
        out.write("done\n")
        assert err.getvalue().endswith(CLEAR), "before anything else is written"
        stage("loading the model")
        wait_for(lambda: "loading the model … " in err.getvalue())
    assert err.getvalue().endswith(CLEAR)
    assert out.getvalue() == "done\n"
    assert err.getvalue().startswith(CLEAR)


def test_a_line_that_somebody_else_has_begun_is_left_alone(streams):
    out, err = streams
    with signs_of_life(out, err):
        err.write("a bar 10%")
        time.sleep(1.2)
        assert err.getvalue() == "a bar 10%"
        err.write("\n")
        wait_for(lambda: "…" in err.getvalue())


def test_nothing_is_shown_while_somebody_types(streams):
    out, err = streams
    with signs_of_life(out, err), still():
        time.sleep(1.2)
    assert err.getvalue() == ""


@pytest.mark.parametrize(("terminal", "rank"), [(False, "0"), (True, "1")])
def test_a_pipe_and_further_processes_get_nothing(streams, monkeypatch, terminal, rank):
    out, err = streams[0], LastingStream(Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("RANK", rank)
    with signs_of_life(out, err):
        time.sleep(1.2)
    assert err.getvalue() == ""


def test_bars_that_stand_there_are_drawn_again(streams):
    from tqdm import tqdm

    out, err = streams
    with signs_of_life(out, err), tqdm(total=3, file=err, ncols=60):
        drawn = err.getvalue().count("0/3")
        wait_for(lambda: err.getvalue().count("0/3") > drawn)
    assert "…" not in err.getvalue()


def test_expected_stages_show_a_bar_with_the_time_left_at_once(streams, monkeypatch):
    monkeypatch.setattr(waiting, "SILENCE", 1000.0)
    out, err = streams
    with signs_of_life(out, err):
        expect({"loading libraries": 1000.0, "reading": 600.0, "measuring": 400.0})
        for name, filled in (("loading libraries", 0), ("reading", 10), ("measuring", 16)):
            stage(name)
            wait_for(lambda: f"{name} {'━' * filled}{'─' * (BAR - filled)} about " in err.getvalue())  # noqa: B023
        stage("training")
        out.write("begun\n")
        seen = len(err.getvalue())
        time.sleep(1.2)
        assert err.getvalue()[seen:] == "", "no bar, so it waits for a silence"


@pytest.mark.parametrize(
    ("stage", "since", "now", "left"),
    [
        ("loading", 0, 1, "0:59"),
        ("reading", 10, 10, "0:50"),
        ("reading", 10, 25, "0:35"),
        ("reading", 30, 30, "2:30"),  # three times as slow as expected
        ("reading", 10, 60, "1:00"),  # twice, and it should be over
        ("measuring", 30, 45, "0:15"),
    ],
)
def test_the_time_left_follows_the_pace_so_far(monkeypatch, stage, since, now, left):
    signs = waiting._Signs()
    monkeypatch.setattr(waiting, "_SIGNS", signs)
    expect({"loading": 10.0, "reading": 20.0, "measuring": 30.0})
    signs.begin(stage)
    signs.started, signs.since = 0.0, float(since)
    assert signs.line(float(now)).endswith(f"about {left} left")


def test_a_bar_that_went_leaves_its_line_to_the_next(streams):
    out, err = streams
    with signs_of_life(out, err):
        stage("writing the adapter")
        err.write("\revaluating 100%")
        err.write("\r                \r")
        wait_for(lambda: "writing the adapter … " in err.getvalue())
