"""What a run on images leaves for people to read: accuracies, two pictures, and the closing lines."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.errors import first_few
from paca.workbench.base.change import change
from paca.workbench.base.files import write_file
from paca.workbench.base.pictures import draw_losses
from paca.workbench.vision.images import Images
from paca.workbench.vision.measure import Answers

MOST_SHOWN = 25
_MOST_NAMED = 5


def describe_answers(answers: Answers, classes: tuple[str, ...]) -> dict[str, Any]:
    """Write a measurement on held-out images for JSON: `accuracy`, `loss`, and accuracy `per_class`."""
    return {"accuracy": answers.accuracy, "loss": answers.loss, "per_class": answers.per_class(classes)}


def draw_curves(path: Path, metrics: Mapping[str, Any]) -> None:
    """Draw the training loss, the held-out loss before and after, and accuracy by class, as a PNG."""
    from matplotlib.figure import Figure

    before, after = metrics["before"], metrics["after"]
    names = list(after["per_class"])
    figure = Figure(figsize=(11, max(4.5, 0.16 * len(names))), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_losses(left, metrics, "image", "held out")
    for measured, label, height in ((before, "before", 0.8), (after, "after", 0.5)):
        right.barh(names, [measured["per_class"][name] or 0.0 for name in names], height=height, label=label)
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("accuracy on held-out images")
    right.set_title(f"{before['accuracy']:.1%} → {after['accuracy']:.1%} of {metrics['held_out']['images']:,}")
    right.legend(loc="lower left")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150))


def draw_mistakes(path: Path, images: Images, answers: Answers) -> None:
    """Draw a grid of misclassified images, the most confident mistakes first, as a PNG."""
    from matplotlib.figure import Figure

    mistakes = answers.mistakes()
    shown = mistakes[:MOST_SHOWN]
    columns = min(5, max(len(shown), 1))
    rows = max(-(-len(shown) // columns), 1)
    figure = Figure(figsize=(2 * max(columns, 2), 2.3 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{len(mistakes):,} of {len(images):,} held-out images misclassified")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, position in zip(grid.flat, shown, strict=False):
        axes.imshow(images.read(position))
        given = images.classes[answers.answered[position]]
        true = images.classes[images.labels[position]]
        axes.set_title(f"predicted {given} {answers.confidence[position]:.0%}\ntrue {true}")
        axes.title.set_fontsize(8)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150))


def closing_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Say whether the model improved, which classes are hardest, where the adapter lies, and how to merge it."""
    before, after, held = metrics["before"], metrics["after"], metrics["held_out"]
    verdict = change(before["accuracy"], after["accuracy"], ".1%", lower_is_better=False)
    measured = {name: value for name, value in after["per_class"].items() if value is not None}
    hardest = sorted(measured, key=lambda name: measured[name])[:_MOST_NAMED]
    folder = Path(metrics["adapter"]).parent
    lines = [
        f"{verdict}: held-out accuracy {before['accuracy']:.1%} -> {after['accuracy']:.1%} "
        f"({held['images']:,} of {held['total']:,} held-out images, {len(after['per_class'])} classes)",
        "hardest classes: "
        + ", ".join(f"{name} {measured[name]:.1%}" for name in hardest)
        + f"; misclassified images: {folder / 'misclassified.png'}",
        f"adapter: {metrics['adapter']} ({metrics['trained_parameters']:,} trained parameters, "
        f"{metrics['trained_share']:.2%} of the model, head included)",
    ]
    if metrics["recipe"]["images"]["weights"] != "random":  # else nobody could load the base again
        lines.append(f"merge: paca export {shlex.quote(str(folder))} --to merged")
    skipped = metrics["skipped"]
    if skipped:
        lines.insert(1, f"skipped: {len(skipped)} image files that cannot be read: {first_few(skipped, _MOST_NAMED)}")
    return lines
