"""The planner against reality: predicted peak beside that of the same step with real tensors, on the CPU.

    python benchmarks/planner.py                        SmolLM2-135M's shape and two smaller ones, 256 tokens, rank 16
    python benchmarks/planner.py --layers 2 --tokens 64 the benchmark itself, in seconds

Weights are random: bytes do not depend on values. Real steps keep what the CPU's attention kernel keeps, and the
prediction is made for the same kernel.
"""

import argparse
import sys
import warnings
from typing import Any

import torch
from transformers import LlamaConfig, Qwen2Config

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


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(shapes()), metavar="SHAPE", help="which (default: all)")
    parser.add_argument("--methods", nargs="+", default=list(PLANNED), metavar="METHOD", help="which (default: all)")
    parser.add_argument("--layers", type=positive, help="build only so many")
    parser.add_argument("--tokens", type=positive, default=256, help="per step (default: %(default)s)")
    parser.add_argument("--rank", type=positive, default=16, help="of every adapter (default: %(default)s)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| shape | method | checkpointing | predicted MiB | real MiB | predicted / real |")
    print("|---|---|---|---:|---:|---:|")
    for name in arguments.shapes:
        config = shapes()[name]
        if arguments.layers:
            config.num_hidden_layers = arguments.layers
        for method in arguments.methods:
            for checkpointing in (False, True):
                print(_line(name, config, method, checkpointing, arguments), flush=True)
    return 0


def _line(name: str, config: Any, method: str, checkpointing: bool, arguments: argparse.Namespace) -> str:
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
    shown = "yes" if checkpointing else "no"
    sizes = f"{predicted / 2**20:.1f} | {real / 2**20:.1f}"
    return f"| {name} | {method} | {shown} | {sizes} | {predicted / real:.5f} |"


if __name__ == "__main__":
    sys.exit(main())
