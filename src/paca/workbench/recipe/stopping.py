"""The recipe's section `early_stopping`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StoppingSection:
    """When training ends before its last step. Evaluations and checkpoints come at the same steps then.

    Args:
        patience: Stop after this many evaluations in a row without a new best.
        threshold: By how much a loss must be lower to count as better.
    """

    patience: int
    threshold: float = 0.0


def stopping_defaults(training: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate at every checkpoint, and end with the best of them; keys that hold where the recipe sets none."""
    strategy = training.get("eval_strategy", training.get("save_strategy", "steps"))
    steps = {"eval_steps": training["save_steps"]} if strategy == "steps" and "save_steps" in training else {}
    return {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        **steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
    }


def stopping_problems(section: StoppingSection, training: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a recipe's `early_stopping` section, whose types are checked already."""
    problems = []
    if section.patience < 1:
        problems.append(f"early_stopping.patience = {section.patience}: expected at least 1 evaluation")
    if training.get("eval_strategy") in ("no", False):
        problems.append(
            "early_stopping: training.eval_strategy = no never evaluates; leave it out to evaluate at every checkpoint"
        )
    if section.threshold < 0:
        problems.append(f"early_stopping.threshold = {section.threshold}: expected 0 or more")
    return problems
