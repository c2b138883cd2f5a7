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
from dataclasses import replace

from paca.workbench.planning.models import find_config
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner

COMMANDS = {
    "plan llama3-8b": 60,
    "plan llama3.1-70b --methods qpaca,qlora": 120,
}
LAYERS = (8, 16, 32)
SIZES = ((1, 512), (1, 8192), (16, 512), (16, 8192))


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="over layers, batch and sequence, instead of commands")
    parser.add_argument("--method", default="paca", help="of the growth (default: %(default)s)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.growth:
        _growth(arguments.method)
        return 0
    print("| command | seconds | wanted | processor seconds | most resident GiB |")
    print("|---|---:|---:|---:|---:|")
    for command, wanted in COMMANDS.items():
        seconds, used, resident = _run(command.split())
        print(f"| `paca {command}` | {seconds:.0f} | {wanted} | {used:.0f} | {resident / 2**30:.2f} |", flush=True)
    return 0


def _run(words: list[str]) -> tuple[float, float, int]:
    """Seconds, processor seconds, and most resident bytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "paca.workbench.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"paca {' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _growth(method: str) -> None:
    print("| layers | batch | tokens | processor seconds | per layer |")
    print("|---:|---:|---:|---:|---:|")
    config = find_config("llama3-8b")
    _seconds(config, TrainingSetting(method))  # caches that the first simulation fills
    for layers in LAYERS:
        config.num_hidden_layers = layers
        _print(layers, TrainingSetting(method), _seconds(config, TrainingSetting(method)))
    for batch, tokens in SIZES:
        setting = replace(TrainingSetting(method), batch=batch, tokens=tokens)
        _print(LAYERS[-1], setting, _seconds(config, setting))


def _print(layers: int, setting: TrainingSetting, seconds: float) -> None:
    print(f"| {layers} | {setting.batch} | {setting.tokens} | {seconds:.2f} | {seconds / layers:.3f} |", flush=True)


def _seconds(config: object, setting: TrainingSetting) -> float:
    return min(_once(config, setting) for _ in range(2))


def _once(config: object, setting: TrainingSetting) -> float:
    start = time.process_time()
    Planner(config).step(setting)
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
