"""Writes what a comparison found: results.json, report.md, report.html, and PEFT's own format."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paca.profiling.environment import machine
from paca.workbench.base import yaml
from paca.workbench.base.files import discard, write_folder, write_json, write_text
from paca.workbench.compare.folder import COMPARISON, HTML, MARKDOWN, RESULTS, UPSTREAM, stored_units
from paca.workbench.compare.html import page
from paca.workbench.compare.markdown import document
from paca.workbench.compare.summary import summarize
from paca.workbench.compare.upstream import upstream_results
from paca.workbench.training.report import versions


def write_report(folder: Path) -> dict[str, Any]:
    """Sum up a comparison's units and write the report into its folder; returns what results.json holds."""
    units = stored_units(folder)
    spec = yaml.parse((folder / COMPARISON).read_text(encoding="utf-8"))
    results: dict[str, Any] = finite({**summarize(units), **spec, "versions": versions()})
    if results["machine"] is None:
        results["machine"] = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write_json(folder / RESULTS, results)
    write_text(folder / MARKDOWN, document(results))
    write_text(folder / HTML, page(results))
    upstream = upstream_results(units, results)
    if upstream:
        write_folder(folder / UPSTREAM, lambda temporary: _write_each(temporary, upstream))
    else:
        discard(folder / UPSTREAM)
    return results


def finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not have, by None, in any nest of mappings and lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write_each(folder: Path, contents: Mapping[str, Any]) -> None:
    for name, content in contents.items():
        write_json(folder / f"{name}.json", content)
