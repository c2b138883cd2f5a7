"""The folder of a comparison: what it was started with, and one file for each unit that is finished."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base import yaml
from paca.workbench.base.files import discard, is_ours, write_json, write_text
from paca.workbench.base.schema import describe_difference
from paca.workbench.compare.units import Unit

WRITER = "comparison"
COMPARISON = "comparison.yaml"
UNITS = "units"
RESULTS, MARKDOWN, HTML, UPSTREAM = "results.json", "report.md", "report.html", "peft"
_OURS = (UNITS, UPSTREAM, RESULTS, MARKDOWN, HTML, COMPARISON)


def open_folder(folder: Path, spec: Mapping[str, Any], overwrite: bool = False) -> None:
    """Make a folder ready for a comparison, or refuse one that holds anything else with a PacaError.

    `spec` is the recipe, a digest of its data, and what else all units have to agree in; `overwrite` deletes another
    comparison.
    """
    known = folder / COMPARISON
    if is_ours(folder, COMPARISON, WRITER):
        differences = describe_difference(yaml.parse(known.read_text(encoding="utf-8")), dict(spec))
        if not differences:
            return
        if not overwrite:
            raise PacaError(
                f"The report folder {str(folder)!r} holds a comparison of another recipe or other data: "
                f"{'; '.join(differences)}. Add --overwrite to replace it, or write elsewhere with --output DIR."
            )
        for name in _OURS:
            discard(folder / name)
    (folder / UNITS).mkdir(parents=True, exist_ok=True)
    write_text(known, yaml.dump(dict(spec)))


def finished(folder: Path, unit: Unit) -> dict[str, Any] | None:
    """Read a unit's result; None if it has to be run: it never was, it failed, or it ran with other values."""
    path = _path(folder, unit)
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    result: dict[str, Any] = stored["result"]
    same = stored["job"] == json.loads(json.dumps(unit.identity()))
    return result if same and "error" not in result else None


def store(folder: Path, unit: Unit, result: Mapping[str, Any]) -> None:
    """Keep what a unit found; the file appears at once, when it is complete."""
    write_json(_path(folder, unit), {"job": unit.identity(), "result": dict(result)})


def stored_units(folder: Path) -> list[dict[str, Any]]:
    """Read `job` and `result` of all units of a comparison, failed ones too, sorted by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / UNITS).glob("[!.]*.json"))]


def _path(folder: Path, unit: Unit) -> Path:
    return folder / UNITS / f"{unit.name}.json"
