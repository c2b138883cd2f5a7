"""Work in a forked process that may be killed."""

import os
import signal
import time
from collections.abc import Callable

PATIENCE = 120  # seconds that work may take which is left alone


def fork_and_kill(work: Callable[[], int], kill: float | None) -> int:
    """Do something in a process of its own, kill it in time, and return what ended it.

    Args:
        work: Returns the exit status.
        kill: Seconds after which the process is killed; left alone where this is None.

    Returns:
        The exit status, or the signal's number below zero.
    """
    child = os.fork()
    if child == 0:
        os._exit(work())
    deadline = time.monotonic() + (PATIENCE if kill is None else kill)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)
