"""QPaCA against QLoRA on one NF4 model: step time, activation bytes kept for backward, peak bytes.

    python benchmarks/quantized.py                          SmolLM2-135M, 256 tokens, rank 16 each
    python benchmarks/quantized.py --config tiny --steps 3  the benchmark itself, in seconds

Steps are taken and timed as in step.py: a copy of the same model and batch for each method, interleaved, lower
quartiles, and the frozen floor over the same quantized weights twice. The peak is that of all live storages in a step:
packed weights, trained parameters, gradients, optimizer state, activations, and matrices dequantized for a GEMM.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmark import add_numbers, add_threads_and_json, benchmark, describe, make_parser, surroundings
from methods import METHODS
from models import CONFIG_HELP, DTYPES, SMOLLM2, load_base
from paca.workbench.base.markdown import table as markdown_table
from paca.workbench.models.load import quantized_copy
from report import Figures, figures_of, noise
from step import prepare
from timing import FLOOR, FLOOR_AGAIN, time_in_turns

_METHODS = {FLOOR: FLOOR, FLOOR_AGAIN: FLOOR_AGAIN, "paca": "QPaCA", "lora": "QLoRA"}
_COLUMNS = ("method", "step ms", "× floor", "× QLoRA", "kept MiB", "× QLoRA", "peak MiB", "× QLoRA", "trained")


@dataclass(frozen=True)
class QuantizedFigures(Figures):
    """One method over quantized weights.

    Args:
        peak_bytes: The most bytes of storages that were alive at once in a step, the model's own among them.
    """

    peak_bytes: int


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--config", default=SMOLLM2, help=CONFIG_HELP)
    add_numbers(
        parser, tokens=(256, "per step"), rank=(16, "of both methods"), steps=(17, "timed steps of each method")
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="what the 4-bit layers compute in"
    )
    parser.add_argument("--quantization", choices=("nf4", "fp4", "int8"), default="nf4")
    return add_threads_and_json(parser)


def load_quantized(which: str, dtype: str, quantization: str) -> PreTrainedModel:
    """Load a model and quantize its linear layers.

    Args:
        which: As for `models.load_base`.
        dtype: What the layers compute in.
        quantization: A name in `paca.workbench.models.quantization.QUANTIZATIONS`.

    Returns:
        The model in training mode, without a key-value cache.
    """
    base = load_base(which, DTYPES[dtype], torch.device("cpu"))
    model = quantized_copy(base, dtype, quantization)
    model.config.use_cache = False
    return model.train()


def measure(base: PreTrainedModel, tokens: int, rank: int, rounds: int) -> dict[str, QuantizedFigures]:
    """Measure the floor, QPaCA and QLoRA on copies of a quantized model.

    Args:
        base: The model; stays as it is.
        tokens: Length of the batch's one sequence.
        rank: Of both methods.
        rounds: Timed steps of each.

    Returns:
        The figures, by the name that the table shows.
    """
    steps = prepare(base, [METHODS[name] for name in _METHODS], tokens, rank)
    times = time_in_turns({name: step.run for name, step in steps.items()}, rounds, f"{tokens} tokens, rank {rank}")
    return {
        _METHODS[name]: QuantizedFigures(**asdict(found), peak_bytes=steps[name].peak().total)
        for name, found in figures_of(steps, times).items()
    }


def table(measured: dict[str, QuantizedFigures]) -> str:
    """The figures as a Markdown table."""
    floor, lora = measured[FLOOR], measured["QLoRA"]
    rows = (
        (
            name,
            f"{found.step_ms:.1f}",
            f"{found.step_ms / floor.step_ms:.3f}",
            f"{found.step_ms / lora.step_ms:.3f}",
            f"{found.kept_bytes / 2**20:.2f}",
            f"{found.kept_bytes / lora.kept_bytes:.3f}",
            f"{found.peak_bytes / 2**20:.1f}",
            f"{found.peak_bytes / lora.peak_bytes:.3f}",
            f"{found.trained_parameters:,}",
        )
        for name, found in measured.items()
    )
    return markdown_table(_COLUMNS, rows)


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print the table."""
    base = load_quantized(arguments.config, arguments.dtype, arguments.quantization)
    measured = measure(base, arguments.tokens, arguments.rank, arguments.steps)
    where = f"{arguments.config}, {arguments.quantization}, {arguments.dtype}"
    print(f"\n{where}, {arguments.tokens} tokens, rank {arguments.rank}; noise {noise(measured):.3f}\n")
    print(table(measured))
    result = {
        **surroundings(),
        "setting": {name: value for name, value in vars(arguments).items() if name not in ("json", "threads")},
        "methods": {name: asdict(found) for name, found in measured.items()},
    }
    print(f"\n{describe(result)}")
    return result


if __name__ == "__main__":
    sys.exit(main())
