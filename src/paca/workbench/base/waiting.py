"""Signs of life: where a terminal would stay still for two seconds, a line says what is being done, and for how long.

Nothing that takes long has to think of it: whatever is written counts, and takes the line away again.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SILENCE = 2.0  # seconds
CLEAR = "\r\x1b[2K"


class _Signs:
    """What is known of the two streams, and the line that is shown."""

    def __init__(self) -> None:
        self.stage = "loading libraries"
        self.since = self.written = time.monotonic()
        self.at_line_start = True
        self.paused = False
        self.shown = False
        self.lock = threading.RLock()

    def begin(self, stage: str) -> None:
        self.stage, self.since = stage, time.monotonic()

    def wrote(self, stream: Any, text: str) -> None:
        """Take the line away before something else is written."""
        with self.lock:
            self.written = time.monotonic()
            if self.shown:
                stream.write(CLEAR)
                self.shown = False
            if text:
                self.at_line_start = text.endswith("\n")

    def show(self, stream: Any) -> None:
        """Write the line, or move the clocks of the bars that stand there."""
        now = time.monotonic()
        with self.lock:
            if self.paused or now - self.written < SILENCE:
                return
            if self.at_line_start:
                self.shown = True
                stream.write(f"{CLEAR}{self.stage} … {now - self.since:.0f} s")
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
