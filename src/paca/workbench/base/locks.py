"""One writer at a time in an output folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from paca.errors import PacaError
from paca.workbench.base.files import is_ours
from paca.workbench.base.messages import one_line

LOCK = ".lock"
PATIENCE = (
    5.0  # seconds: worker processes of a run that was killed notice that after some, and hold the lock till then
)


@contextlib.contextmanager
def locked(folder: Path, writer: str) -> Iterator[None]:
    """Have a folder, made if need be, to oneself for a `with` block.

    The lock is the operating system's, so it ends with the process that took it, however that ends; its file stays.
    A PacaError if another process has the folder: `writer` says what that is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise PacaError(f"The output folder {str(folder)!r} can't be made: {one_line(error)}") from error
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise PacaError(
            f"Another {writer} is writing to the output folder {str(folder)!r}. Wait until it has ended, or write "
            "elsewhere with --output DIR."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_if_ours(folder: Path, mark: str, writer: str) -> Iterator[None]:
    """The same, for a folder that is new or bears our mark; one of others is refused untouched, as by `is_ours`."""
    is_ours(folder, mark, writer)
    with locked(folder, writer):
        yield
