"""The report as one HTML file that needs neither a network nor a server: table, charts, recipe, raw numbers."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from paca.workbench.base import yaml
from paca.workbench.compare.columns import COLUMNS, cell, shown_columns
from paca.workbench.compare.figures import charts, colours
from paca.workbench.compare.markdown import document, how, notes, source_name
from paca.workbench.methods.catalogue import FLOORS

# The part of plotly.js that draws scatters and bars: a quarter of the whole, which plotly's Python package has.
PLOTLY = "plotly-basic.min.js"
_CARDS = {
    "loss": "lowest held-out loss",
    "to_floor": "fastest step",
    "peak_bytes": "least memory",
    "forgotten": "least forgotten",
}


def page(results: Mapping[str, Any]) -> str:
    """Write the report as HTML; `results` is what results.json holds, finite numbers only."""
    loader = PackageLoader("paca.workbench.compare", "page")
    pages = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return pages.get_template("page.html").render(
        results=results,
        heading=f"{results['recipe']['model']['name']} on {source_name(results['recipe']['data']['train'])}",
        facts=_facts(results),
        cards=_cards(results),
        columns=shown_columns(results),
        all_columns=COLUMNS,
        cell=cell,
        tints=colours(results["methods"]),
        notes=notes(results),
        charts=charts(results),
        machine=how(results),
        recipe=yaml.dump(results["recipe"]),
        texts={"summary.csv": summary_csv(results), "report.md": document(results)},
        plotly=loader.get_source(pages, PLOTLY)[0],
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


def _facts(results: Mapping[str, Any]) -> str:
    rows = [row for row in results["methods"] if row["method"] not in FLOORS]
    seeds = max((len(row.get("seeds", ())) for row in rows), default=0)
    training = results["recipe"]["training"]
    facts = [
        f"{len(rows)} methods" if len(rows) != 1 else "1 method",
        f"{seeds} seed{'s' * (seeds != 1)}" if seeds else "",
        f"{training['max_steps']} steps" if seeds and training.get("max_steps") else "",
        f"sequences of {training['max_length']} tokens" if training.get("max_length") else "",
        f"methods matched by {results['match']}",
    ]
    return " · ".join(filter(None, facts))


def _cards(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What each card says: the title, the methods that are best, and their value, or why none is."""
    rows = {row["method"]: row for row in results["methods"]}
    by_key = {column.key: column for column in COLUMNS}
    for key, title in _CARDS.items():
        winners = results["best"].get(key)
        if winners is not None and not winners:
            yield title, "none", "no difference beyond noise"
        elif winners:
            unit = by_key[key].title if key != "loss" else ""
            yield title, ", ".join(winners), f"{cell(rows[winners[0]], by_key[key])} {unit}"
