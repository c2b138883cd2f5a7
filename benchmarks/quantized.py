"""QPaCA against QLoRA on one NF4 model: step time, activation bytes kept for backward, peak bytes.

    python benchmarks/quantized.py                          SmolLM2-135M, 256 tokens, rank 16 each
    python benchmarks/quantized.py --config tiny --steps 3  the benchmark itself, in seconds

Steps are taken and timed as in step.py: a copy of the same model and batch for each method, interleaved, lower
quartiles, and the frozen floor over the same quantized weights twice. The peak is that of all live storages in a step:
packed weights, trained parameters, gradients, optimizer state, activations, and matrices dequantized for a GEMM.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from methods import FLOOR, FLOOR_AGAIN, METHODS
from models import SMOLLM2, load_base
from paca.profiling import track
from paca.profiling.environment import machine
from paca.profiling.steps import TrainingStep, interleave
from paca.workbench.base.options import positive
from paca.workbench.models.load import save_merged
from paca.workbench.models.quantization import quantization_config
from report import Figures, figures, versions
from step import describe, prepare

_WARM_UP_STEPS = 2
_METHODS = {FLOOR: FLOOR, FLOOR_AGAIN: FLOOR_AGAIN, "paca": "QPaCA", "lora": "QLoRA"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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
    parser = argparse.ArgumentParser(
        prog="python benchmarks/quantized.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=SMOLLM2, help="smollm2 (real weights), tiny, or a config.json")
    parser.add_argument("--tokens", type=positive, default=256, help="per step (default: %(default)s)")
    parser.add_argument("--rank", type=positive, default=16, help="of both methods (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=17, help="timed steps of each method (default: %(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="what the 4-bit layers compute in")
    parser.add_argument("--quantization", choices=("nf4", "fp4", "int8"), default="nf4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file as well")
    return parser


def load_quantized(which: str, dtype: str, quantization: str) -> PreTrainedModel:
    """Load a model and quantize its linear layers.

    Args:
        which: As for `models.load_base`.
        dtype: What the layers compute in.
        quantization: A name in `paca.workbench.models.quantization.QUANTIZATIONS`.

    Returns:
        The model in training mode, without a key-value cache.
    """
    base = load_base(which, _DTYPES[dtype], torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:  # transformers quantizes only what it loads
        save_merged(base, Path(folder) / "plain")
        config = quantization_config(quantization, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "plain", quantization_config=config, dtype=_DTYPES[dtype]
        )
    model.config.use_cache = False
    return model.train()


def peak_bytes(step: TrainingStep) -> int:
    """The most bytes alive at once in one step, with what the step starts from."""
    with track(step.held()) as tracker:
        step.run()
    return tracker.peak_bytes


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
    for step in steps.values():
        for _ in range(_WARM_UP_STEPS):
            step.run()
    kept = {name: step.kept_bytes() for name, step in steps.items()}
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    times = interleave({name: step.run for name, step in steps.items()}, rounds, lambda done: _progress(done, rounds))
    measured = {}
    for name, step in steps.items():
        plain = figures(times[name], kept[name], sum(parameter.numel() for parameter in step.trained))
        measured[_METHODS[name]] = QuantizedFigures(**asdict(plain), peak_bytes=peaks[name])
    return measured


def _progress(done: int, rounds: int) -> None:
    print(f"\rround {done} of {rounds}", end="\n" if done == rounds else "", file=sys.stderr, flush=True)


def table(measured: dict[str, QuantizedFigures]) -> str:
    """The figures as a Markdown table."""
    floor, lora = measured[FLOOR], measured["QLoRA"]
    lines = [_row(_COLUMNS), _row(("---", *["---:"] * (len(_COLUMNS) - 1)))]
    for name, found in measured.items():
        cells = (
            f"{found.step_ms:.1f}",
            f"{found.step_ms / floor.step_ms:.3f}",
            f"{found.step_ms / lora.step_ms:.3f}",
            f"{found.kept_bytes / 2**20:.2f}",
            f"{found.kept_bytes / lora.kept_bytes:.3f}",
            f"{found.peak_bytes / 2**20:.1f}",
            f"{found.peak_bytes / lora.peak_bytes:.3f}",
            f"{found.trained_parameters:,}",
        )
        lines.append(_row((name, *cells)))
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and write the JSON file.

    Args:
        argv: The arguments; those of the command line when left out.

    Returns:
        The exit status.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        base = load_quantized(arguments.config, arguments.dtype, arguments.quantization)
    except FileNotFoundError as error:
        parser.error(str(error))
    measured = measure(base, arguments.tokens, arguments.rank, arguments.steps)
    again = measured[FLOOR_AGAIN].step_ms / measured[FLOOR].step_ms
    where = f"{arguments.config}, {arguments.quantization}, {arguments.dtype}"
    print(f"\n{where}, {arguments.tokens} tokens, rank {arguments.rank}; noise {again:.3f}\n\n{table(measured)}")
    result = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "setting": {name: value for name, value in vars(arguments).items() if name != "json"},
        "methods": {name: asdict(found) for name, found in measured.items()},
    }
    print(f"\n{describe(result)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
