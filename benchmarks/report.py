"""What a run measured: the figures of each method, their ratios, and the table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paca.profiling.steps import StepTime, TrainingStep, quartiles
from paca.workbench.base.markdown import table as markdown_table
from timing import FLOOR, FLOOR_AGAIN

_COLUMNS = (
    "method",
    "step ms",
    "× floor",
    "× LoRA",
    "forward",
    "backward",
    "optimizer",
    "kept MiB",
    "× floor",
    "trained",
)


@dataclass(frozen=True)
class Figures:
    """One method at one setting.

    Args:
        step_ms: Lower quartile of the whole step, milliseconds.
        forward_ms: Lower quartile of the forward pass.
        backward_ms: Lower quartile of the backward pass.
        optimizer_ms: Lower quartile of the optimizer's step.
        kept_bytes: Bytes of activations kept for backward.
        trained_parameters: How many values are trained.
    """

    step_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    kept_bytes: int
    trained_parameters: int


def figures(times: list[StepTime], kept_bytes: int, trained_parameters: int) -> Figures:
    """Sum up the steps of one method."""
    return Figures(*(1000 * seconds for seconds in quartiles(times).values()), kept_bytes, trained_parameters)


def figures_of(steps: Mapping[str, TrainingStep], times: Mapping[str, list[StepTime]]) -> dict[str, Figures]:
    """Sum up the steps of several methods, by name, with the bytes that each keeps and what it trains."""
    return {
        name: figures(times[name], step.kept_bytes(), sum(parameter.numel() for parameter in step.trained))
        for name, step in steps.items()
    }


def ratio(value: float, reference: float | None) -> float | None:
    """`value / reference`, or None when there is no reference."""
    return value / reference if reference else None


def with_ratios(measured: dict[str, Figures]) -> dict[str, dict[str, Any]]:
    """Each method's figures beside their ratios to the floor's, and to LoRA's step where LoRA was measured."""
    floor, lora = measured[FLOOR], measured.get("lora")
    return {
        name: asdict(figure)
        | {
            "step_to_floor": ratio(figure.step_ms, floor.step_ms),
            "step_to_lora": ratio(figure.step_ms, lora.step_ms if lora else None),
            "kept_to_floor": ratio(figure.kept_bytes, floor.kept_bytes),
        }
        for name, figure in measured.items()
    }


def noise(measured: Mapping[str, Figures]) -> float:
    """The floor's second timing over its first: a ratio closer to 1 than this one means nothing."""
    return measured[FLOOR_AGAIN].step_ms / measured[FLOOR].step_ms


def table(measured: dict[str, Figures]) -> str:
    """The figures as a Markdown table."""
    rows = (
        (
            name,
            f"{row['step_ms']:.1f}",
            f"{row['step_to_floor']:.3f}",
            "–" if row["step_to_lora"] is None else f"{row['step_to_lora']:.3f}",
            f"{row['forward_ms']:.1f}",
            f"{row['backward_ms']:.1f}",
            f"{row['optimizer_ms']:.1f}",
            f"{row['kept_bytes'] / 2**20:.2f}",
            f"{row['kept_to_floor']:.3f}",
            f"{row['trained_parameters']:,}",
        )
        for name, row in with_ratios(measured).items()
    )
    return markdown_table(_COLUMNS, rows)


def over_seeds(losses: Sequence[float]) -> tuple[str, str, str]:
    """Mean, standard deviation (a dash where there is but one) and each loss, as cells of a table."""
    deviation = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else "–"
    return f"{statistics.mean(losses):.4f}", deviation, ", ".join(f"{loss:.4f}" for loss in losses)
