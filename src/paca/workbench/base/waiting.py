"""Signs of life: where a terminal would stay still for two seconds, a line says what is being done, and for how long.

Nothing that takes long has to think of it: whatever is written counts, and takes the line away again. A command that
knows its stages before it has begun says so by `expect`, and shows a bar with the time left from the first second.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

SILENCE = 1.4  # seconds; with the half second between two looks, and what a busy interpreter takes, below two
CLEAR = "\r\x1b[2K"
BAR = 20  # characters


class _Signs:
    """What is known of the two streams, and the line that is shown."""

    def __init__(self) -> None:
        self.stage = "loading libraries"
        self.since = self.written = time.monotonic()
        self.at_line_start = True
        self.paused = False
        self.shown = False
        self.lock = threading.RLock()
        self.expected: dict[str, float] = {}  # stages still to come, this one among them, and their seconds
        self.passed = 0.0  # seconds that were expected of those before
        self.started = self.since

    def begin(self, stage: str) -> None:
        self.stage, self.since = stage, time.monotonic()
        if stage in self.expected:
            while next(iter(self.expected)) != stage:
                self.passed += self.expected.pop(next(iter(self.expected)))

    def line(self, now: float) -> str:
        """What is done; and how long that has taken, or how long it and what comes after it may take."""
        if self.stage not in self.expected:
            return f"{self.stage} … {now - self.since:.0f} s"
        here = now - self.since
        left = sum(self.expected.values()) - min(here, self.expected[self.stage])
        done = self.passed + min(here, self.expected[self.stage])
        pace = max((now - self.started) / done, 1.0) if done else 1.0  # of a slower machine than the one expected
        filled = round(BAR * done / (done + left))
        minutes, seconds = divmod(round(left * pace), 60)
        return f"{self.stage} {'━' * filled}{'─' * (BAR - filled)} about {minutes}:{seconds:02} left"

    def wrote(self, stream: Any, text: str) -> None:
        """Take the line away before something else is written."""
        with self.lock:
            self.written = time.monotonic()
            if self.shown:
                stream.write(CLEAR)
                self.shown = False
            if text:
                self.at_line_start = text.endswith(("\n", "\r"))  # a bar goes by overwriting itself

    def show(self, stream: Any) -> None:
        """Write the line, or move the clocks of the bars that stand there."""
        now = time.monotonic()
        with self.lock:
            begins = self.at_line_start and self.stage in self.expected
            if self.paused or (now - self.written < SILENCE and not begins):
                return
            if self.at_line_start:
                self.shown = True
                stream.write(f"{CLEAR}{self.line(now)}")
                stream.flush()
                return
        for bar in list(getattr(sys.modules.get("tqdm"), "tqdm", _NoBars)._instances):
            bar.refresh()


class _NoBars:
    _instances = ()


_SIGNS = _Signs()


def stage(text: str) -> None:
    """Name what is done from now on, such as `reading the data`."""
    _SIGNS.begin(text)


def expect(seconds: Mapping[str, float]) -> None:
    """Say which stages come, from now on, and about how long each takes; a bar is shown in them.

    Args:
        seconds: By stage, in order. One that is left out by the run is passed over.
    """
    _SIGNS.expected, _SIGNS.passed, _SIGNS.started = dict(seconds), 0.0, time.monotonic()


@contextlib.contextmanager
def still() -> Iterator[None]:
    """Show nothing in a `with` block: somebody types, or another program has the terminal."""
    before, _SIGNS.paused = _SIGNS.paused, True
    try:
        yield
    finally:
        _SIGNS.paused, _SIGNS.written = before, time.monotonic()


@contextlib.contextmanager
def signs_of_life(stdout: Any, stderr: Any) -> Iterator[None]:
    """Show such a line on standard error, if that is a terminal and this is no further process of several.

    Args:
        stdout: A stream that calls its `before_write` with the text before it writes it.
        stderr: Another one, whose own stream is `stream`.
    """
    if not stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield
        return
    ended = threading.Event()
    terminal = stderr.stream

    def watch() -> None:
        while not ended.wait(0.5):
            _SIGNS.show(terminal)

    thread = threading.Thread(target=watch, daemon=True)
    expect({})
    _SIGNS.begin("loading libraries")
    for stream in (stdout, stderr):
        stream.before_write = lambda text: _SIGNS.wrote(terminal, text)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _SIGNS.wrote(terminal, "")
