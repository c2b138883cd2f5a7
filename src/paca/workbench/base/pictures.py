"""The loss curve that runs of every task draw."""

from collections.abc import Mapping
from typing import Any


def draw_losses(axes: Any, metrics: Mapping[str, Any], unit: str, label: str) -> None:
    """Draw metrics.json's training loss per `unit`, and the held-out loss before, during and after training."""
    if metrics["loss_curve"]:
        axes.plot(*zip(*metrics["loss_curve"], strict=True), label="training, mean since the last point")
    on_the_way = [tuple(point) for point in metrics["eval_curve"]]
    held_out = [(0, metrics["before"]["loss"]), *on_the_way, (metrics["steps"], metrics["after"]["loss"])]
    axes.plot(*zip(*held_out, strict=True), "o--", label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"loss (nats per {unit})")
    axes.set_title(f"{metrics['recipe']['method']['name']} on {metrics['recipe']['model']['name']}")
    axes.grid(alpha=0.3)
    axes.legend()
