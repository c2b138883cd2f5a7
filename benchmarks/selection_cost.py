"""What selection and moving connections cost: time beside full fine-tuning, bytes beside fixed connections.

    python benchmarks/selection_cost.py                    seconds of selection over 20 batches, and of 25 full steps
    python benchmarks/selection_cost.py --memory           bytes at the peak of training, connections fixed and moving
    python benchmarks/selection_cost.py --config tiny      the benchmark itself, in seconds

Time: each strategy that needs data selects over the same batches, in one call, ranking included; half of the steps of
full fine-tuning are taken before and half after, so that a slower machine slows both. Memory: bytes of live storages,
exact and independent of the machine; what moving connections leave behind is kept on the CPU whatever the model is
on, and is stated apart.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

import paca
from models import SMOLLM2, load_base
from paca import PacaConfig, PacaLayer
from paca.profiling import track
from paca.workbench.base.options import positive

STRATEGIES: dict[str, dict[str, Any]] = {
    "gradient, sum": {"selection": "gradient", "gradient_mode": "sum"},
    "gradient, norm": {"selection": "gradient", "gradient_mode": "norm"},
    "activation": {"selection": "activation"},
    "weight_activation": {"selection": "weight_activation"},
}


@dataclass(frozen=True)
class Peak:
    """Bytes of a run.

    Args:
        peak: The most that were alive at once, the model included.
        aside: Of these, what retired connections keep on the CPU.
    """

    peak: int
    aside: int


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/selection_cost.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--memory", action="store_true", help="count bytes in place of seconds")
    parser.add_argument("--tokens", type=positive, default=256, help="per batch (default: %(default)s)")
    parser.add_argument("--batches", type=positive, default=20, help="that a strategy sees (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=25, help="of full fine-tuning (default: %(default)s)")
    parser.add_argument("--rank", type=positive, default=16, help="(default: %(default)s)")
    parser.add_argument("--moves", type=positive, default=2, help="with --memory (default: %(default)s)")
    parser.add_argument("--config", default=SMOLLM2, help="smollm2, tiny, or a config.json (random weights)")
    return parser


def make_batches(base: PreTrainedModel, count: int, tokens: int) -> list[dict[str, Tensor]]:
    """Batches of one random sequence each.

    Args:
        base: Tells the vocabulary.
        count: How many.
        tokens: Per sequence.

    Returns:
        The batches, with labels.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(base.config.vocab_size, (count, 1, tokens), generator=generator)
    return [{"input_ids": each, "labels": each} for each in ids]


def full_steps(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> float:
    """Fine-tune every parameter, one step a batch, after one step to warm up.

    Args:
        model: Is changed.
        batches: One per step.

    Returns:
        Seconds.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: dict[str, Tensor]) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(batches[0])
    started = time.perf_counter()
    for batch in batches:
        step(batch)
    return time.perf_counter() - started


def selection_seconds(base: PreTrainedModel, options: dict[str, Any], batches: list[Any], rank: int) -> float:
    """Select by a strategy on a copy of the model.

    Args:
        base: The model; stays as it is.
        options: The strategy.
        batches: What it sees, all of them.
        rank: Connections per layer.

    Returns:
        Seconds of the call.
    """
    config = PacaConfig(r=rank, target_modules="all-linear", random_seed=0, selection_batches=len(batches), **options)
    model = get_peft_model(copy.deepcopy(base), config)
    started = time.perf_counter()
    paca.select_connections(model, batches, progress=False)
    return time.perf_counter() - started


def peak_of(base: PreTrainedModel, tokens: int, rank: int, moves: int, moving: bool) -> Peak:
    """Train two steps before the first move and after each.

    Args:
        base: The model; stays as it is.
        tokens: Per step.
        rank: Connections per layer.
        moves: How often they move.
        moving: Whether they do; fixed ones take as many steps.

    Returns:
        Bytes.
    """
    config = PacaConfig(r=rank, target_modules="all-linear", random_seed=0, reselect_every=2 if moving else None)
    model = get_peft_model(copy.deepcopy(base), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    (batch,) = make_batches(base, 1, tokens)
    with track(include=model) as tracker:
        for phase in range(moves + 1):
            if moving and phase:
                paca.reselect(model, optimizer)
            for _ in range(2):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    with torch.no_grad():
        model(**batch)  # shows the columns that the last step has outdated
    return Peak(tracker.peak_bytes, aside(model))


def aside(model: nn.Module) -> int:
    """Bytes that retired connections keep on the CPU: their updates, and the pretrained values under them."""
    found = 0
    for layer in model.modules():
        if isinstance(layer, PacaLayer) and layer.retired:
            kept = [retired.delta for retired in layer.retired.values()]
            kept += [] if layer.columns.under is None else [layer.columns.under.values]
            found += sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return found


def time_table(base: PreTrainedModel, arguments: argparse.Namespace) -> str:
    """Measure all strategies, and full fine-tuning around them.

    Args:
        base: The model; stays as it is.
        arguments: The command line.

    Returns:
        A Markdown table.
    """
    batches = make_batches(base, arguments.batches, arguments.tokens)
    steps = make_batches(base, arguments.steps, arguments.tokens)
    half = len(steps) // 2
    _say(f"{half} steps of full fine-tuning")
    full = full_steps(copy.deepcopy(base), steps[:half]) if half else 0.0
    seconds = {}
    for name, options in STRATEGIES.items():
        _say(name)
        seconds[name] = selection_seconds(base, options, batches, arguments.rank)
    _say(f"{len(steps) - half} more steps of full fine-tuning")
    full += full_steps(copy.deepcopy(base), steps[half:])
    what = f"{len(batches)} batches of {arguments.tokens} tokens"
    lines = [
        f"| selection over {what} | seconds | ÷ {len(steps)} steps of full fine-tuning |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {name} | {taken:.1f} | {taken / full:.2f} |" for name, taken in seconds.items()]
    return "\n".join([*lines, f"| (full fine-tuning) | {full:.1f} | 1 |"])


def memory_table(base: PreTrainedModel, arguments: argparse.Namespace) -> str:
    """Count the bytes of fixed and of moving connections.

    Args:
        base: The model; stays as it is.
        arguments: The command line.

    Returns:
        A Markdown table.
    """
    many = arguments.rank * (arguments.moves + 1)
    runs = {
        f"fixed, rank {arguments.rank}": (arguments.rank, False),
        f"moved {arguments.moves} times, rank {arguments.rank}": (arguments.rank, True),
        f"fixed, rank {many}": (many, False),
    }
    peaks = {}
    for name, (rank, moving) in runs.items():
        _say(name)
        peaks[name] = peak_of(base, arguments.tokens, rank, arguments.moves, moving)
    first = next(iter(peaks.values())).peak
    lines = ["| connections | peak bytes | of these aside | the rest ÷ fixed |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {found.peak:,} | {found.aside:,} | {(found.peak - found.aside) / first:.4f} |"
        for name, found in peaks.items()
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, and print the table.

    Args:
        argv: The arguments; those of the command line when left out.

    Returns:
        The exit status.
    """
    arguments = build_parser().parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    base = load_base(arguments.config, torch.float32, torch.device("cpu"))
    print(memory_table(base, arguments) if arguments.memory else time_table(base, arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
