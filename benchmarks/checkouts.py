"""Step time of this checkout of the project beside another one's, such as a worktree of an earlier commit.

    git worktree add /tmp/earlier COMMIT
    python benchmarks/checkouts.py /tmp/earlier                            PaCA at 256 tokens, rank 16
    python benchmarks/checkouts.py /tmp/earlier --settings 32:8 --steps 41 --repeats 3

Each checkout's package and benchmarks run in a process of their own, and the steps of all take turns, every other
round in reverse. A time is the lower quartile over the rounds, a ratio that to the frozen floor of the same process.
Where a process has its weights in memory moves its ratios by a hundredth or two, so everything is repeated with new
processes, and the median tells.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmark import (
    add_numbers,
    add_threads_and_json,
    benchmark,
    describe,
    make_parser,
    print_table,
    progress,
    surroundings,
)
from models import CONFIG_HELP, SMOLLM2
from paca.profiling.steps import lower_quartile
from step import setting

_FLOOR = "floor"
# What each process runs, with its own checkout's modules: a step of the method named on each line that it is sent.
_SERVER = """
import sys
import torch
from models import load_base
from methods import choose_methods
from step import prepare
config, tokens, rank, threads, *methods = sys.argv[1:]
if threads != "0":
    torch.set_num_threads(int(threads))
base = load_base(config, torch.float32, torch.device("cpu"))
steps = prepare(base, choose_methods(methods, torch.float32), int(tokens), int(rank))
for step in steps.values():
    step.run(), step.run()
print("ready", flush=True)
for line in sys.stdin:
    print(steps[line.strip()].run().total, flush=True)
"""


class Checkout:
    """A checkout's steps in a process of their own.

    Args:
        folder: The checkout.
        arguments: Of the command line.
        tokens: Length of the batch's one sequence.
        rank: Of every method.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace, tokens: int, rank: int) -> None:
        words = [arguments.config, str(tokens), str(rank), str(arguments.threads or 0), *arguments.methods]
        paths = os.pathsep.join(str(folder / part) for part in ("benchmarks", "src"))
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self.times: dict[str, list[float]] = {}
        while (line := self._read()) != "ready":
            if not line:
                sys.exit(f"The benchmarks of {folder} do not run: try `python benchmarks/step.py` there.")

    def step(self, method: str) -> None:
        """Take a step of a method, and note its time."""
        self.process.stdin.write(method + "\n")
        self.process.stdin.flush()
        self.times.setdefault(method, []).append(float(self._read()))

    def ratios(self) -> dict[str, float]:
        """Each method's time over the floor's."""
        floor = lower_quartile(self.times[_FLOOR])
        return {name: lower_quartile(times) / floor for name, times in self.times.items() if name != _FLOOR}

    def _read(self) -> str:
        line: str = self.process.stdout.readline()
        return line.strip()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--settings", nargs="+", type=setting, metavar="TOKENS:RANK", default=[(256, 16)])
    parser.add_argument("--methods", nargs="+", metavar="NAME", default=["paca"], help="as in step.py (default: paca)")
    parser.add_argument("--config", default=SMOLLM2, help=CONFIG_HELP)
    add_numbers(parser, steps=(21, "timed steps of each method"), repeats=(3, "times with new processes"))
    return add_threads_and_json(parser)


def measure(folders: dict[str, Path], arguments: argparse.Namespace, tokens: int, rank: int) -> dict[str, Any]:
    """Take the steps of all checkouts in turns.

    Args:
        folders: The checkouts, by name.
        arguments: Of the command line.
        tokens: Length of the batch's one sequence.
        rank: Of every method.

    Returns:
        By checkout, the ratios by method.
    """
    checkouts = {name: Checkout(folder, arguments, tokens, rank) for name, folder in folders.items()}
    turns = [(checkout, method) for checkout in checkouts.values() for method in (_FLOOR, *arguments.methods)]
    for done in range(arguments.steps):
        progress(f"{tokens} tokens, rank {rank}: round {done + 1} of {arguments.steps}")
        for checkout, method in turns if done % 2 == 0 else reversed(turns):
            checkout.step(method)
    progress("")
    for checkout in checkouts.values():
        checkout.process.kill()
    return {name: checkout.ratios() for name, checkout in checkouts.items()}


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure at each setting, and print a row per checkout and method."""
    folders = {"this": Path(__file__).resolve().parent.parent, "other": arguments.other.resolve()}
    result: dict[str, Any] = {**surroundings(), "settings": []}
    print_table(["checkout", "tokens", "rank", "method", "× floor, median", "of each repeat"], [])
    for tokens, rank in arguments.settings:
        repeats = [measure(folders, arguments, tokens, rank) for _ in range(arguments.repeats)]
        result["settings"].append({"tokens": tokens, "rank": rank, "repeats": repeats})
        for name in folders:
            for method in arguments.methods:
                ratios = [repeat[name][method] for repeat in repeats]
                each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
                print(
                    f"| {name} | {tokens} | {rank} | {method} | {statistics.median(ratios):.3f} | {each} |", flush=True
                )
    print(f"\n{describe(result)}")
    return result


if __name__ == "__main__":
    sys.exit(main())
