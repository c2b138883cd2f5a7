"""The loss curve that runs of every task draw."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from paca.workbench.base.palette import method_colours

_WINDOWS = 10  # that a smoothed curve is made of, side by side
_LEAST_REACH = 2  # points to either side


def draw_losses(axes: Any, metrics: Mapping[str, Any], unit: str, label: str) -> None:
    """Draw metrics.json's training loss per `unit`, and the held-out loss before, during and after training."""
    method = metrics["recipe"]["method"]["name"]
    tint = method_colours([method])[method]
    if metrics["loss_curve"]:
        steps, losses = zip(*metrics["loss_curve"], strict=True)
        axes.plot(steps, losses, ".", color=tint, alpha=0.3, label="training, mean since the last point")
        axes.plot(steps, smoothed(losses), color=tint, label="the same, smoothed")
    on_the_way = [tuple(point) for point in metrics["eval_curve"]]
    held_out = [(0, metrics["before"]["loss"]), *on_the_way, (metrics["steps"], metrics["after"]["loss"])]
    axes.plot(*zip(*held_out, strict=True), "o", color="black", label=label)  # no line: nothing was measured between
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"loss (nats per {unit})")
    axes.set_title(f"{method} on {metrics['recipe']['model']['name']}")
    axes.grid(alpha=0.3)
    axes.legend()


def smoothed(values: Sequence[float]) -> list[float]:
    """Take the mean of each value with its neighbours: as many before it as behind it, fewer at the ends."""
    reach = max(len(values) // (2 * _WINDOWS), _LEAST_REACH)
    means = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        means.append(statistics.fmean(values[place - near : place + near + 1]))
    return means
