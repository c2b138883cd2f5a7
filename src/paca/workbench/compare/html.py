"""The report as one HTML file that needs neither a network nor a server: table, charts, recipe, raw numbers."""

import csv
import io
import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from paca.workbench.base import yaml
from paca.workbench.compare.columns import COLUMNS, cell, shown_columns
from paca.workbench.compare.figures import charts, colours
from paca.workbench.compare.markdown import document, how, notes, spelled
from paca.workbench.compare.methods import FLOOR


def page(results: Mapping[str, Any]) -> str:
    """Write the report.

    Args:
        results: What results.json holds; finite numbers only.

    Returns:
        HTML.
    """
    recipe = results["recipe"]
    heading = f"{recipe['model']['name']} on {spelled(recipe['data']['train'])}"
    figures = charts(results)
    return Template(_part("page.html")).substitute(
        title=escape(f"{heading}: paca compare"),
        heading=escape(heading),
        facts=escape(_facts(results)),
        style=_part("page.css"),
        script=_part("page.js"),
        plotly=get_plotlyjs(),
        failures=_failures(results),
        cards=_cards(results),
        table=_table(results),
        notes=escape(notes(results)),
        legend="".join(f"<dt>{escape(column.title)}</dt><dd>{escape(column.help)}</dd>" for column in COLUMNS),
        charts="".join(_chart(chart) for chart in figures),
        machine=escape(how(results)),
        recipe=escape(yaml.dump(recipe)),
        versions=escape("\n".join(f"{name} {version}" for name, version in results["versions"].items())),
        results=_json(results),
        figures=_json(figures),
        texts=_json({"summary.csv": summary_csv(results), "report.md": document(results)}),
    )


def summary_csv(results: Mapping[str, Any]) -> str:
    """The summary's numbers, unrounded, as comma-separated values."""
    spreads = [column.spread for column in COLUMNS if column.spread]
    keys = ["method", *(column.key for column in COLUMNS), *spreads, "error"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["methods"])
    return stream.getvalue()


def _part(name: str) -> str:
    return (resources.files("paca.workbench.compare") / "page" / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _facts(results: Mapping[str, Any]) -> str:
    rows = [row for row in results["methods"] if row["method"] != FLOOR]
    seeds = max((len(row.get("seeds", ())) for row in rows), default=0)
    training = results["recipe"]["training"]
    facts = [
        f"{len(rows)} methods" if len(rows) != 1 else "1 method",
        f"{seeds} seed{'s' * (seeds != 1)}" if seeds else "",
        f"{training['max_steps']} steps" if training.get("max_steps") else "",
        f"sequences of {training['max_length']} tokens" if training.get("max_length") else "",
        f"ranks matched by {results['match']}",
    ]
    return " · ".join(filter(None, facts))


def _failures(results: Mapping[str, Any]) -> str:
    failed = [
        f"<li><strong>{escape(row['method'])}</strong>: {escape(row['error'])}</li>"
        for row in results["methods"]
        if row["error"]
    ]
    return (
        f'<section class="failed"><h2>Methods that failed</h2><ul>{"".join(failed)}</ul></section>' if failed else ""
    )


def _cards(results: Mapping[str, Any]) -> str:
    rows = {row["method"]: row for row in results["methods"]}
    cards = []
    for key, title in (
        ("loss", "lowest held-out loss"),
        ("to_floor", "fastest step"),
        ("peak_bytes", "least memory"),
        ("forgotten", "least forgotten"),
    ):
        winners = results["best"].get(key)
        if winners:
            column = next(column for column in COLUMNS if column.key == key)
            value = f"{cell(rows[winners[0]], column)} {column.title if key != 'loss' else ''}"
            names = escape(", ".join(winners))
            cards.append(f'<div class="card"><span>{title}</span><strong>{names}</strong><span>{value}</span></div>')
    return "".join(cards)


def _table(results: Mapping[str, Any]) -> str:
    columns, best, tints = shown_columns(results), results["best"], colours(results["methods"])
    head = "".join(f'<th title="{escape(column.help)}">{escape(column.title)}</th>' for column in columns)
    body = []
    for row in results["methods"]:
        swatch = f'<span class="swatch" style="background:{tints[row["method"]]}"></span>'
        cells = "".join(
            f'<td class="best" title="best"><b>{cell(row, column)}</b></td>'
            if row["method"] in best.get(column.key, ())
            else f"<td>{cell(row, column)}</td>"
            for column in columns
        )
        body.append(f"<tr><td>{swatch}{escape(row['method'])}</td>{cells}</tr>")
    return f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _chart(chart: Mapping[str, Any]) -> str:
    return (
        f'<section class="chart"><h2>{escape(chart["title"])}</h2><p>{escape(chart["text"])}</p>'
        f'<div class="plot" id="{chart["id"]}"></div></section>'
    )
