"""What a run leaves for people to read: the numbers of metrics.json, the loss curve, and three closing lines."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.errors import DISTRIBUTION
from paca.profiling.environment import versions as installed_versions
from paca.workbench.base.change import change
from paca.workbench.base.files import write_file
from paca.workbench.base.pictures import draw_losses
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.training.run_folder import ADAPTER

VERSIONED = (DISTRIBUTION, "torch", "transformers", "peft", "trl", "accelerate", "datasets")


@dataclass(frozen=True)
class Parameters:
    """How much of a model is trained.

    Args:
        trained: Elements of the parameters that are trained.
        total: Elements of all parameters, those of quantized weights unpacked.
    """

    trained: int
    total: int


def count_parameters(model: Any) -> Parameters:
    """Count the trained and all parameters of a model, usually a `PeftModel`, whose adapter alone is trained."""
    from paca.tuner.layers.quantized import unpacked_sizes

    sizes = unpacked_sizes(model)
    trained = sum(sizes[name] for name, parameter in model.named_parameters() if parameter.requires_grad)
    return Parameters(trained, sum(sizes.values()))


def never_stepped(trainer: Any) -> int:
    """Count the trained elements of whose parameters an optimizer has no state after training: no gradient came.

    Zero where its parameters aren't the model's, as under an engine that divides them.
    """
    states = getattr(trainer.optimizer, "state", None) or {}
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    missed = [parameter for parameter in trained if parameter not in states]
    return sum(parameter.numel() for parameter in missed) if len(missed) < len(trained) else 0


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    return installed_versions(VERSIONED)


def loss_points(log_history: Sequence[Mapping[str, Any]], key: str = "loss") -> list[tuple[int, float]]:
    """Pick (step, value) pairs of one quantity out of Trainer's log; `eval_loss` is that of evaluations on the way."""
    return [(int(entry["step"]), float(entry[key])) for entry in log_history if key in entry]


def run_metrics(recipe: Recipe, trainer: Any) -> dict[str, Any]:
    """What metrics.json holds of a run of any task, after it has trained."""
    parameters = count_parameters(trainer.model)
    trained = parameters.trained - never_stepped(trainer)
    history = trainer.state.log_history
    return {
        "trained_parameters": trained,
        "trained_share": trained / parameters.total,
        "steps": trainer.state.global_step,
        "device": str(trainer.args.device),
        "loss_curve": loss_points(history),
        "eval_curve": loss_points(history, "eval_loss"),
        "adapter": str(Path(recipe.output_dir) / ADAPTER),
        "versions": versions(),
        "recipe": recipe.to_dict(),
    }


def draw_loss_curve(path: Path, metrics: Mapping[str, Any]) -> None:
    """Draw the training loss, and the held-out loss before and after, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    before, after = metrics["before"], metrics["after"]
    draw_losses(
        figure.subplots(),
        metrics,
        "token",
        f"held out: perplexity {before['perplexity']:.1f} → {after['perplexity']:.1f} ({before['tokens']:,} tokens)",
    )
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150))


def closing_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Say whether the model improved, where the adapter lies, and how to merge it."""
    before, after, held = metrics["before"], metrics["after"], metrics["held_out"]
    verdict = change(before["perplexity"], after["perplexity"], ".2f")
    return [
        f"{verdict}: held-out perplexity {before['perplexity']:.2f} -> {after['perplexity']:.2f} "
        f"({held['sequences']} of {held['total']} held-out sequences, {before['tokens']:,} tokens)",
        f"adapter: {metrics['adapter']} ({metrics['trained_parameters']:,} trained parameters, "
        f"{metrics['trained_share']:.2%} of the model)",
        f"merge: paca export {shlex.quote(metrics['adapter'])} --to merged",
    ]
