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

import paca
from benchmark import add_numbers, benchmark, make_parser, print_table, progress
from models import CONFIG_HELP, SMOLLM2, load_base
from paca import PacaConfig, PacaLayer
from paca.profiling import track

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
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--memory", action="store_true", help="count bytes in place of seconds")
    add_numbers(parser, tokens=(256, "per batch"), rank=(16, "of PaCA"), moves=(2, "with --memory"))
    add_numbers(parser, batches=(20, "that a strategy sees"), steps=(25, "of full fine-tuning"))
    parser.add_argument("--config", default=SMOLLM2, help=CONFIG_HELP)
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
    return Peak(tracker.peak_bytes, aside(model))


def aside(model: nn.Module) -> int:
    """Bytes that retired connections keep on the CPU: their updates, and the pretrained values under them."""
    found = 0
    for layer in model.modules():
        if isinstance(layer, PacaLayer) and layer.retired:
            found += 2 * sum(one.delta.numel() * one.delta.element_size() for one in layer.retired.values())
    return found


def time_selection(base: PreTrainedModel, arguments: argparse.Namespace) -> None:
    """Measure all strategies, and full fine-tuning around them; print a table."""
    batches = make_batches(base, arguments.batches, arguments.tokens)
    steps = make_batches(base, arguments.steps, arguments.tokens)
    half = len(steps) // 2
    progress(f"{half} steps of full fine-tuning")
    full = full_steps(copy.deepcopy(base), steps[:half]) if half else 0.0
    seconds = {}
    for name, options in STRATEGIES.items():
        progress(name)
        seconds[name] = selection_seconds(base, options, batches, arguments.rank)
    progress(f"{len(steps) - half} more steps of full fine-tuning")
    full += full_steps(copy.deepcopy(base), steps[half:])
    progress("")
    what = f"selection over {len(batches)} batches of {arguments.tokens} tokens"
    rows = [(name, f"{taken:.1f}", f"{taken / full:.2f}") for name, taken in seconds.items()]
    rows.append(("(full fine-tuning)", f"{full:.1f}", "1"))
    print_table((what, "seconds", f"÷ {len(steps)} steps of full fine-tuning"), rows)


def count_memory(base: PreTrainedModel, arguments: argparse.Namespace) -> None:
    """Count the bytes of fixed and of moving connections; print a table."""
    many = arguments.rank * (arguments.moves + 1)
    runs = {
        f"fixed, rank {arguments.rank}": (arguments.rank, False),
        f"moved {arguments.moves} times, rank {arguments.rank}": (arguments.rank, True),
        f"fixed, rank {many}": (many, False),
    }
    peaks = {}
    for name, (rank, moving) in runs.items():
        progress(name)
        peaks[name] = peak_of(base, arguments.tokens, rank, arguments.moves, moving)
    progress("")
    first = next(iter(peaks.values())).peak
    rows = (
        (name, f"{found.peak:,}", f"{found.aside:,}", f"{(found.peak - found.aside) / first:.4f}")
        for name, found in peaks.items()
    )
    print_table(("connections", "peak bytes", "of these aside", "the rest ÷ fixed"), rows)


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Measure, and print the table."""
    base = load_base(arguments.config, torch.float32, torch.device("cpu"))
    (count_memory if arguments.memory else time_selection)(base, arguments)


if __name__ == "__main__":
    sys.exit(main())
