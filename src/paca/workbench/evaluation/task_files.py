"""A user's own task files for lm-evaluation-harness, which are programs as much as data."""

import hashlib
from pathlib import Path

from paca.errors import PacaError


def check_folder(folder: Path, trust: bool) -> None:
    """Refuse a folder of task files that is not trusted.

    What a task file says can be run in many ways: `!function` names Python, a metric may be a script, and templates
    are rendered in a Jinja that is no sandbox. So no file is looked through for what it might do.

    A PacaError if it is not trusted, if there is no such folder, or if it holds no task files.
    """
    if not folder.is_dir():
        raise PacaError(f"--include {str(folder)!r}: there is no such folder.")
    if not _files(folder):
        raise PacaError(f"--include {str(folder)!r} holds no task files (*.yaml).")
    if not trust:
        raise PacaError(
            f"The task files in {str(folder)!r} can name Python code, which the harness runs. Read them, and add "
            "--trust-task-files."
        )


def digest(folder: Path) -> str:
    """Digest all task files, and the Python next to them, to 16 hexadecimal digits."""
    found = hashlib.sha256()
    for path in [*_files(folder), *sorted(folder.rglob("*.py"))]:
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml") or path.name.endswith("_yaml")
    )
