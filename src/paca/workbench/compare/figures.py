"""The report's charts, as plotly figures without colours of their own: the page gives them those of its theme."""

import html
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from paca.workbench.base.palette import GREY, KINDS, PHASES, method_colours
from paca.workbench.base.pictures import smoothed
from paca.workbench.compare.noise import margin, pareto
from paca.workbench.methods.catalogue import FLOOR, FLOORS

Row = Mapping[str, Any]
_LINE = 18  # characters of a label's line, so that labels leave room on a phone
_BETTER = "Down and to the left is better; no method beats those on the line in both."
_TIME = "training_seconds"
_FEWEST_SMOOTHED = 4  # points of a training loss that make a curve


def charts(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make the charts for which results.json has data: `id`, `title`, `text` and `figure`, plotly's JSON, of each."""
    rows = results["methods"]
    timed = [row for row in rows if row.get("step_ms") is not None]
    made = (
        (
            "loss-step",
            "Held-out loss by step",
            "Points are measurements, dotted lines only join them; the band spans the seeds.",
            _curves(rows, "optimizer step", lambda row, step: step),
        ),
        (
            "loss-time",
            "Held-out loss by time",
            "The same points over steps at the time that they took in turns, other work on the machine left out.",
            _curves(
                timed,
                "seconds of training",
                lambda row, step: step * _seconds_per_step(row, results["recipe"]["training"]),
            ),
        ),
        (
            "training-loss",
            "Training loss",
            "Points are what was logged, lines the mean over neighbouring points.",
            _training(rows),
        ),
        ("memory", "Memory at the peak of a step", "Live bytes, by what they are for.", _memory(rows)),
        ("time", "Time of a step", "Methods in turns, lower quartiles; the line is the frozen floor.", _time(rows)),
        (
            "pareto",
            "Memory against loss",
            f"{_BETTER} Bars are two standard errors over the seeds.",
            _scatter(rows, "peak_bytes", "MiB at the peak of a step", 2**20),
        ),
        (
            "pareto-time",
            "Time against loss",
            f"{_BETTER} Seconds are of all steps, at the time that they took in turns.",
            _scatter(
                [{**row, _TIME: _training_seconds(row, results["recipe"]["training"])} for row in timed],
                _TIME,
                "seconds of training",
            ),
        ),
        ("throughput", "Throughput as the batch grows", "Until memory is full.", _throughput(rows)),
        ("longest", "Longest sequence", "One sequence per step, within the memory limit.", _longest(rows)),
        ("operations", "Operations of a step", "Floating-point, as counted.", _operations(rows)),
    )
    return [
        {"id": key, "title": title, "text": text, "figure": figure.to_plotly_json()}
        for key, title, text, figure in made
        if figure.data
    ]


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """Give each method the colour that it has in every chart of every report; the floor is grey."""
    return method_colours(row["method"] for row in rows)


def shown_label(label: str) -> str:
    """Write a method's label for a chart: broken into short lines behind its commas and brackets, and escaped."""
    lines = [""]
    for part in re.findall(rf"[^(,=]{{1,{_LINE}}}[(,=]?|[(,=]", label):
        if lines[-1] and len(lines[-1]) + len(part.strip()) > _LINE:
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
    return "<br>".join(html.escape(line) for line in lines)


def _figure(x: str, y: str, height: int = 380, **layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 16, "b": 56},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"namelength": -1},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        **layout,
    )
    figure.update_xaxes(title=x, automargin=True, zeroline=False)
    figure.update_yaxes(title=y, automargin=True, zeroline=False)
    return figure


def _seconds_per_step(row: Row, training: Mapping[str, Any]) -> float:
    """Seconds of an optimizer step, all of its batches counted, as timed in turns with the others'."""
    more = (training.get("gradient_accumulation_steps") or 1) - 1
    return float(row["step_ms"] + more * (row["forward_ms"] + row["backward_ms"])) / 1000


def _training_seconds(row: Row, training: Mapping[str, Any]) -> float | None:
    """Seconds of all steps that a method was trained for, as timed in turns; None where it was not trained."""
    curves = row.get("curves") or []
    return curves[0][-1]["step"] * _seconds_per_step(row, training) if curves else None


def _curves(rows: Sequence[Row], title: str, place: Callable[[Row, int], float]) -> go.Figure:
    """Held-out losses where they were measured; `place` says where on the axis a step of a method lies."""
    by_step = title == "optimizer step"
    figure = _figure(title, "held-out loss", hovermode="x unified" if by_step else "closest")
    tints = colours(rows)
    for row in rows:
        curves = row.get("curves") or []
        if not curves or len(curves[0]) < 2:
            continue
        points = list(zip(*curves, strict=True))
        x = [place(row, same[0]["step"]) for same in points]
        losses = [[point["loss"] for point in same if point["loss"] is not None] or [None] for same in points]
        name, tint = shown_label(row["method"]), tints[row["method"]]
        if len(curves) > 1 and all(None not in values for values in losses):
            figure.add_scatter(
                x=[*x, *reversed(x)],
                y=[*map(max, losses), *reversed([*map(min, losses)])],
                mode="lines",
                fill="toself",
                fillcolor=f"rgba{(*hex_to_rgb(tint), 0.18)}",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        figure.add_scatter(
            x=x,
            y=[None if None in values else statistics.fmean(values) for values in losses],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": tint, "width": 1.5, "dash": "dot"},
            marker={"size": 8},
            hovertemplate="%{y:.4f}" if by_step else "%{x:.1f} s: %{y:.4f}",
        )
    return figure


def _training(rows: Sequence[Row]) -> go.Figure:
    figure = _figure("optimizer step", "training loss", hovermode="closest")
    tints = colours(rows)
    for row in rows:
        runs = [run for run in row.get("training_losses") or [] if len(run) >= _FEWEST_SMOOTHED]
        if not runs or row["method"] in FLOORS:
            continue
        figure.add_scatter(
            x=[step for run in runs for step, _ in run],
            y=[loss for run in runs for _, loss in run],
            mode="markers",
            marker={"size": 4, "color": tints[row["method"]], "opacity": 0.3},
            legendgroup=row["method"],
            showlegend=False,
            hoverinfo="skip",
        )
        steps = [step for step, _ in runs[0]]
        means = [statistics.fmean(loss for _, loss in same) for same in zip(*runs, strict=False)]
        figure.add_scatter(
            x=steps[: len(means)],
            y=smoothed(means),
            mode="lines",
            name=shown_label(row["method"]),
            legendgroup=row["method"],
            line={"color": tints[row["method"]], "width": 2.5},
            hovertemplate="step %{x}: %{y:.4f}",
        )
    return figure


def _memory(rows: Sequence[Row]) -> go.Figure:
    shown = [row for row in rows if row.get("peak_by_kind")]
    parts = {
        label: (tint, [row["peak_by_kind"].get(kind, 0) / 2**20 for row in shown])
        for kind, (label, tint) in KINDS.items()
    }
    return _stacked("MiB", shown, parts)


def _time(rows: Sequence[Row]) -> go.Figure:
    shown = [row for row in rows if row.get("step_ms") is not None]
    parts = {label: (tint, [row[key] for row in shown]) for key, (label, tint) in PHASES.items()}
    figure = _stacked("ms", shown, parts, "; step %{customdata:.3f} × floor", [row["to_floor"] for row in shown])
    floor = next((row["step_ms"] for row in shown if row["method"] == FLOOR), None)
    if floor is not None:
        figure.add_vline(x=floor, line={"color": GREY, "width": 1.5, "dash": "dash"})
    return figure


def _operations(rows: Sequence[Row]) -> go.Figure:
    shown = [row for row in rows if row.get("operations")]
    parts = {
        label: (tint, [row["operations"][label] / 1e9 for row in shown])
        for label, tint in PHASES.values()
        if label != "optimizer"
    }
    return _stacked("GFLOP", shown, parts)


def _stacked(
    unit: str,
    rows: Sequence[Row],
    parts: Mapping[str, tuple[str, Sequence[float]]],
    more: str = "",
    customdata: Sequence[Any] | None = None,
) -> go.Figure:
    """One bar per method, of parts with a colour and a value for each; nothing where no method has them."""
    figure = _bars(unit, rows)
    for label, (tint, values) in parts.items() if rows else ():
        figure.add_bar(
            y=[shown_label(row["method"]) for row in rows],
            x=values,
            name=label,
            orientation="h",
            marker={"color": tint},
            customdata=customdata,
            hovertemplate=f"%{{y}}: {label} %{{x:,.1f}} {unit}{more}<extra></extra>",
        )
    return figure


def _bars(title: str, rows: Sequence[Row]) -> go.Figure:
    figure = _figure(title, "", height=150 + 40 * len(rows), barmode="stack", bargap=0.35)
    figure.update_layout(legend={"traceorder": "normal"})
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def _scatter(rows: Sequence[Row], cost: str, title: str, unit: float = 1) -> go.Figure:
    """Held-out loss against a cost, a key of the rows, and the front of those that no other method beats in both."""
    figure = _figure(title, "held-out loss", hovermode="closest", showlegend=False)
    found = {
        row["method"]: row
        for row in rows
        if row["method"] not in FLOORS and row.get("loss") is not None and row.get(cost) is not None
    }
    tints, front = colours(rows), pareto(found.values(), cost)
    if len(front) > 1:
        figure.add_scatter(
            x=[found[name][cost] / unit for name in front],
            y=[found[name]["loss"] for name in front],
            mode="lines",
            line={"color": GREY, "dash": "dot", "shape": "hv"},
            hoverinfo="skip",
        )
    places = [row[cost] for row in found.values()]
    for name, row in found.items():
        left = 2 * row[cost] <= min(places) + max(places)
        reach = margin(row["loss_error"])
        figure.add_scatter(
            x=[row[cost] / unit],
            y=[row["loss"]],
            error_y={"array": [reach], "thickness": 1.5, "width": 4} if reach else None,
            mode="markers+text",
            name=shown_label(name),
            text=[shown_label(name)],
            textposition="top right" if left else "top left",
            marker={"color": tints[name], "size": 14, "symbol": "circle" if name in front else "circle-open"},
            hovertemplate=f"{shown_label(name)}<br>%{{x:,.1f}} {title.split()[0]}<br>loss %{{y:.4f}}<extra></extra>",
            cliponaxis=False,
        )
    figure.update_xaxes(rangemode="normal")
    return figure


def _throughput(rows: Sequence[Row]) -> go.Figure:
    figure = _figure("sequences per step", "tokens per second", hovermode="x unified")
    tints = colours(rows)
    for row in rows:
        points = (row.get("throughput") or {}).get("points") or []
        if points:
            figure.add_scatter(
                x=[point["sequences"] for point in points],
                y=[point["tokens_per_second"] for point in points],
                mode="lines+markers",
                name=shown_label(row["method"]),
                line={"color": tints[row["method"]], "width": 1.5, "dash": "dot"},
                marker={"size": 8},
                hovertemplate="%{y:,.0f} tokens/s",
            )
    figure.update_xaxes(type="log")
    return figure


def _longest(rows: Sequence[Row]) -> go.Figure:
    shown = [row for row in rows if row.get("max_tokens") is not None]
    figure = _bars("tokens", shown)
    if shown:
        tints = colours(rows)
        figure.add_bar(
            y=[shown_label(row["method"]) for row in shown],
            x=[row["max_tokens"] for row in shown],
            orientation="h",
            marker={"color": [tints[row["method"]] for row in shown]},
            text=[f"{row['max_tokens']:,}" for row in shown],
            hovertemplate="%{y}: %{x:,} tokens<extra></extra>",
            showlegend=False,
        )
    return figure if shown else go.Figure()
