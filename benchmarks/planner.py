"""The planner against reality: predicted peak beside that of the same step with real tensors, on the CPU.

    python benchmarks/planner.py                        SmolLM2-135M's shape, 256 tokens, rank 16
    python benchmarks/planner.py --layers 2 --tokens 64 the benchmark itself, in seconds

Weights are random: bytes do not depend on values. Real steps keep what the CPU's attention kernel keeps, and the
prediction is made for the same kernel.
"""

import argparse
import sys
import time
import warnings

import torch

from paca.planning.models import find_config
from paca.planning.simulate import METHODS, Setting, build, measure, simulate
from step import positive


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="as for `paca plan` (default: %(default)s)")
    parser.add_argument("--layers", type=positive, help="build only so many")
    parser.add_argument("--tokens", type=positive, default=256, help="per step (default: %(default)s)")
    parser.add_argument("--rank", type=positive, default=16, help="of every adapter (default: %(default)s)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    config = find_config(arguments.model)
    if arguments.layers:
        config.num_hidden_layers = arguments.layers
    print("| method | checkpointing | predicted MiB | real MiB | predicted / real | planning s |")
    print("|---|---|---:|---:|---:|---:|")
    for method in METHODS:
        for checkpointing in (False, True):
            print(_line(config, method, checkpointing, arguments), flush=True)
    return 0


def _line(config: object, method: str, checkpointing: bool, arguments: argparse.Namespace) -> str:
    setting = Setting(
        method,
        arguments.rank,
        1,
        arguments.tokens,
        torch.float32,
        checkpointing=checkpointing,
        attention="sdpa",
    )
    start = time.perf_counter()
    predicted = simulate(config, setting).total
    seconds = time.perf_counter() - start
    real = measure(build(config, setting, "cpu"), setting).total
    ratio = predicted / real
    shown = "yes" if checkpointing else "no"
    return f"| {method} | {shown} | {predicted / 2**20:.1f} | {real / 2**20:.1f} | {ratio:.5f} | {seconds:.1f} |"


if __name__ == "__main__":
    sys.exit(main())
