"""The planner against reality: predicted peak beside that of the same step with real tensors, on the CPU.

    python benchmarks/planner.py                        SmolLM2-135M's shape and two smaller ones, 256 tokens, rank 16
    python benchmarks/planner.py --layers 2 --tokens 64 the benchmark itself, in seconds

Weights are random: bytes do not depend on values. Real steps keep what the CPU's attention kernel keeps, and the
prediction is made for the same kernel.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig, Qwen2Config

from benchmark import add_numbers, benchmark, make_parser, print_table
from paca.workbench.base.options import positive
from paca.workbench.planning.methods import PLANNED
from paca.workbench.planning.models import find_config
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import build, measure, simulate

SMALLER = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "num_hidden_layers": 4,
}


def shapes() -> dict[str, Any]:
    """The configurations that are compared, by name."""
    return {
        "smollm2-135m": find_config("smollm2-135m"),
        "small llama": LlamaConfig(**SMALLER),
        "small qwen2": Qwen2Config(**{**SMALLER, "hidden_size": 320, "num_hidden_layers": 6}),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--shapes", nargs="+", default=list(shapes()), metavar="SHAPE", help="which (default: all)")
    parser.add_argument("--methods", nargs="+", default=list(PLANNED), metavar="METHOD", help="which (default: all)")
    parser.add_argument("--layers", type=positive, help="build only so many")
    add_numbers(parser, tokens=(256, "per step"), rank=(16, "of every adapter"))
    return parser


def measure_all(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Predict and measure every shape, method and checkpointing; a row of the table each."""
    for name in arguments.shapes:
        config = shapes()[name]
        if arguments.layers:
            config.num_hidden_layers = arguments.layers
        for method in arguments.methods:
            for checkpointing in (False, True):
                setting = TrainingSetting(
                    method,
                    arguments.rank,
                    1,
                    arguments.tokens,
                    torch.float32,
                    checkpointing=checkpointing,
                    attention="sdpa",
                )
                predicted = simulate(config, setting).total
                real = measure(build(config, setting, "cpu"), setting, warm_up=True).peak.total
                sizes = (f"{predicted / 2**20:.1f}", f"{real / 2**20:.1f}", f"{predicted / real:.5f}")
                yield name, method, "yes" if checkpointing else "no", *sizes


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Measure, and print a table."""
    warnings.filterwarnings("ignore")
    columns = ("shape", "method", "checkpointing", "predicted MiB", "real MiB", "predicted / real")
    print_table(columns, measure_all(arguments), text=["method", "checkpointing"])


if __name__ == "__main__":
    sys.exit(main())
