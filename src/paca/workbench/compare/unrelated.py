"""The text on which forgetting shows."""

from importlib import resources
from pathlib import Path

from paca.errors import PacaError


def unrelated_text(path: str | None) -> str:
    """Read the text file that has nothing to do with the task; None for the story that comes with paca."""
    if path is None:
        return resources.files("paca.workbench.compare").joinpath("unrelated.txt").read_text(encoding="utf-8")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PacaError(f"--unrelated {path!r} can't be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise PacaError(f"--unrelated {path!r} is empty; name a text that has nothing to do with the task.")
    return text
