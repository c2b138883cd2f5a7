"""Writes that are whole or not there: a temporary name, fsync, rename."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paca.errors import PacaError, first_few
from paca.workbench.base.messages import one_line, shown


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in `path`'s place."""
    temporary = _temporary(path)
    write(temporary)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, then put it in `path`'s place."""
    temporary = _temporary(path)
    discard(temporary)
    temporary.mkdir(parents=True)
    write(temporary)
    sync_folder(temporary)
    if path.exists():  # a folder with content cannot be renamed over
        old = path.with_name(f".{path.name}.old")
        discard(old)
        path.rename(old)
        temporary.rename(path)
        discard(old)
    else:
        temporary.rename(path)
    _sync(path.parent)


def is_ours(folder: Path, mark: str, writer: str) -> bool:
    """Whether an output folder bears our mark, the first file that we write; False for one that is empty or missing.

    A PacaError, which names `writer`, refuses a folder with other files and no mark, and a path where none can be.
    """
    try:
        found = folder.lstat()
    except (NotADirectoryError, FileNotFoundError):
        found = None
    except OSError as error:
        raise PacaError(f"The output folder {shown(str(folder))} can't be made: {one_line(error)[:200]}") from error
    below = next((parent for parent in folder.parents if parent.exists() and not parent.is_dir()), None)
    if below is not None or (found is not None and not folder.is_dir()):
        which = "" if below is None else f": {str(below)!r}"
        raise PacaError(f"The output folder {str(folder)!r}{which} is not a folder; name one with --output DIR.")
    if not folder.exists() or (folder / mark).exists():
        return folder.exists()
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others:
        raise PacaError(
            f"The output folder {str(folder)!r} holds files that no {writer} wrote ({first_few(others, 3)}); name a "
            "new or an empty folder with --output DIR."
        )
    return False


@contextlib.contextmanager
def borrowed_folder(path: Path) -> Iterator[Path]:
    """Have a folder for a `with` block; what did not exist before, and is empty, is gone after it."""
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Wait until every file below `folder` is on the disk, readable by whoever may read the folder."""
    readers = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file():  # safetensors lets nobody but the owner read its files, whatever the umask says
            path.chmod(path.stat().st_mode | readers)
        _sync(path)
    _sync(folder)


def discard(path: Path) -> None:
    """Delete a file or a folder with its content; nothing to do where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # The suffix stays last: matplotlib and others choose the format by it.
    return path.with_name(f".{path.stem}.tmp{path.suffix}")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
