"""What torch.compile makes of a step: its time and the bytes saved for backward, compiled beside eager, per method.

    python benchmarks/compiled.py                          a Llama of six blocks, 256 tokens, rank 16
    python benchmarks/compiled.py --methods paca lora      some methods

The eager steps of all methods take turns first, then the compiled ones, with the eager floor among both: a ratio is
that to the floor of the same turns. Eager steps come first because weights keep their ordinary memory layout from the
first compilation of a process on. Bytes are those that autograd saves, above what lives anyway.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmark import add_numbers, add_threads_and_json, benchmark, describe, make_parser, print_table, surroundings
from gpu import saved_bytes
from methods import METHODS, choose_methods
from paca.profiling.steps import TrainingStep, quartiles
from step import prepare
from timing import FLOOR, FLOOR_AGAIN, time_in_turns

_METHODS = ("floor-lean", "paca", "paca-lean", "lora", "lora-lean", "miss")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__, methods=METHODS)
    add_numbers(
        parser,
        blocks=(6, "of the Llama"),
        width=(256, "of its hidden states"),
        tokens=(256, "per step"),
        rank=(16, "of every method"),
        steps=(15, "timed steps of each method"),
    )
    parser.add_argument("--methods", nargs="+", default=_METHODS, metavar="NAME", help="beside the floor")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: %(default)s)")
    return add_threads_and_json(parser)


def llama(blocks: int, width: int) -> LlamaForCausalLM:
    """A Llama with random weights and the proportions of SmolLM2."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_attention_heads": width // 32}
    config = LlamaConfig(**sizes, num_hidden_layers=blocks, num_key_value_heads=width // 64, vocab_size=4096)
    config.use_cache = False
    return LlamaForCausalLM(config).train()


def measure(steps: Mapping[str, TrainingStep], rounds: int, title: str) -> dict[str, dict[str, float]]:
    """Time and saved bytes of each method's step, and the time's ratio to the floor's.

    Args:
        steps: By method, the floor among them.
        rounds: Timed steps of each.
        title: What progress is shown under.

    Returns:
        By method.
    """
    times = time_in_turns({name: step.run for name, step in steps.items()}, rounds, title)
    seconds = {name: quartiles(taken)["total"] for name, taken in times.items()}
    return {
        name: {
            "step_ms": 1000 * seconds[name],
            "step_to_floor": seconds[name] / seconds[FLOOR],
            "saved_bytes": saved_bytes(step),
        }
        for name, step in steps.items()
    }


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods, eager and compiled, and print a row for each."""
    methods = choose_methods(arguments.methods, torch.float32)
    steps = prepare(llama(arguments.blocks, arguments.width), methods, arguments.tokens, arguments.rank)
    eager = measure(steps, arguments.steps, "eager")
    for name, step in steps.items():
        if name != FLOOR:
            step.model.compile(backend=arguments.backend)
    compiled = measure(steps, arguments.steps, "compiled")
    columns = ("method", "eager ms", "× floor", "saved MiB", "compiled ms", "× eager floor", "saved MiB")
    rows = (
        (FLOOR if name == FLOOR_AGAIN else name, *_cells(eager[name]), *_cells(compiled[name]))
        for name in steps
        if name != FLOOR
    )
    print_table(columns, rows)
    result = {**surroundings(), **vars(arguments), "eager": eager, "compiled": compiled}
    print(f"\n{describe(result)}\nThe first row's × floor is the noise of the eager steps.")
    return {name: value for name, value in result.items() if name != "json"}


def _cells(row: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{row['step_ms']:.1f}", f"{row['step_to_floor']:.3f}", f"{row['saved_bytes'] / 2**20:.1f}"


if __name__ == "__main__":
    sys.exit(main())
