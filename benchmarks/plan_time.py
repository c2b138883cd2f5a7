"""How long `paca plan` takes, and how much memory of its own.

    python benchmarks/plan_time.py            the commands of docs/planning.md, each in a process of its own
    python benchmarks/plan_time.py --growth   one simulation over layers, batch and sequence

Growth is counted in processor seconds of this process, the lower of two, since other work on the machine only adds.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

from benchmark import benchmark, make_parser, print_table
from paca.workbench.planning.models import find_config
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner

COMMANDS = {
    "plan smollm2-135m": 12,
    "plan llama3-8b": 60,
    "plan llama3.1-70b --methods qpaca,qlora": 120,
}
LAYERS = (8, 16, 32)
SIZES = ((1, 512), (1, 8192), (16, 512), (16, 8192))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--growth", action="store_true", help="over layers, batch and sequence, instead of commands")
    parser.add_argument("--method", default="paca", help="of the growth (default: %(default)s)")
    return parser


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Measure, and print a table."""
    warnings.filterwarnings("ignore")
    if arguments.growth:
        print_table(("layers", "batch", "tokens", "processor seconds", "per layer"), _growth(arguments.method))
    else:
        print_table(("command", "seconds", "wanted", "processor seconds", "most resident GiB"), _commands())


def _commands() -> Iterator[tuple[str, ...]]:
    for command, wanted in COMMANDS.items():
        seconds, used, resident = _run(command.split())
        yield f"`paca {command}`", f"{seconds:.0f}", f"{wanted}", f"{used:.0f}", f"{resident / 2**30:.2f}"


def _run(words: list[str]) -> tuple[float, float, int]:
    """Seconds, processor seconds, and most resident bytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "paca.workbench.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"paca {' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _growth(method: str) -> Iterator[tuple[str, ...]]:
    config = find_config("llama3-8b")
    _seconds(config, TrainingSetting(method))  # caches that the first simulation fills
    settings = [(layers, TrainingSetting(method)) for layers in LAYERS]
    settings += [(LAYERS[-1], replace(TrainingSetting(method), batch=batch, tokens=tokens)) for batch, tokens in SIZES]
    for layers, setting in settings:
        config.num_hidden_layers = layers
        seconds = _seconds(config, setting)
        yield f"{layers}", f"{setting.batch}", f"{setting.tokens}", f"{seconds:.2f}", f"{seconds / layers:.3f}"


def _seconds(config: object, setting: TrainingSetting) -> float:
    return min(_once(config, setting) for _ in range(2))


def _once(config: object, setting: TrainingSetting) -> float:
    start = time.process_time()
    Planner(config).step(setting)
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
