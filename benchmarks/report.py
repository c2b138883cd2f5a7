"""What a run measured: the figures of each method, their ratios, the table, and the machine they belong to."""

from dataclasses import asdict, dataclass
from typing import Any

from methods import FLOOR, FLOOR_AGAIN
from paca.profiling.environment import versions as installed_versions
from paca.profiling.steps import StepTime, lower_quartile

_VERSIONS = ("torch", "transformers", "peft", "paca")
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
    parts = ([getattr(step, part) for step in times] for part in ("total", "forward", "backward", "optimizer"))
    return Figures(*(1000 * lower_quartile(part) for part in parts), kept_bytes, trained_parameters)


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


def noise(measured: dict[str, Figures]) -> float:
    """The floor's second timing over its first: a ratio closer to 1 than this one means nothing."""
    return measured[FLOOR_AGAIN].step_ms / measured[FLOOR].step_ms


def table(measured: dict[str, Figures]) -> str:
    """The figures as a Markdown table."""
    lines = [_row(_COLUMNS), _row(("---", *["---:"] * (len(_COLUMNS) - 1)))]
    for name, row in with_ratios(measured).items():
        lines.append(
            _row(
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
            )
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are measured."""
    return installed_versions(_VERSIONS)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
