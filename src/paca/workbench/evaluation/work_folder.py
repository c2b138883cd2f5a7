"""The folder of one evaluation: the settings it was started with, and the result."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.files import discard, is_ours, write_json
from paca.workbench.base.schema import describe_difference

SETTINGS = "settings.json"  # written first
RESULT = "result.json"  # written last, whole


def open_work(folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> dict[str, Any] | None:
    """Make a folder ready for an evaluation, which is resumed if it was started there with the same settings.

    Returns the result if it is finished. `overwrite` deletes an earlier evaluation; without it, a PacaError refuses a
    folder that holds one with other settings, or something else.
    """
    begun = is_ours(folder, SETTINGS, "evaluation")
    if begun and not overwrite:
        return _go_on(folder, settings)
    if begun:
        discard(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    return None


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result of an evaluation into its own folder."""
    write_json(folder / RESULT, result)


def _go_on(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    begun_with = _read(folder / SETTINGS)
    differences = describe_difference(begun_with, json.loads(json.dumps(settings)))
    if differences:
        raise PacaError(
            f"The evaluation in {str(folder)!r} was started with other settings: {'; '.join(differences)}. Add "
            "--overwrite to start again, or name another folder with --output DIR."
        )
    return _read(folder / RESULT) if (folder / RESULT).is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        content = error
    if not isinstance(content, dict):
        raise PacaError(f"{path} is not what an evaluation wrote; add --overwrite to start again.")
    return content
