"""What a step costs beside its arithmetic: operators that are dispatched, and the host's time, per adapted layer.

    python benchmarks/launches.py                          Llamas of 28 and of 56 adapted layers, all methods
    python benchmarks/launches.py --methods paca lora      some methods

On a GPU a small step waits for the host: each operator that is not a view or an allocation is a kernel to launch.
The models are so small that arithmetic costs next to nothing. Operators are counted exactly, on whatever device, and
given beyond the frozen floor's, by phase of the step; a fused optimizer step is one. Where Triton is installed, a row
"paca, one kernel" has what a GPU launches, where one kernel puts the columns into all weights and one puts them back.
Triton's interpreter runs these here, so that this row has no time. Host time is that of the whole step beyond the
floor's on one thread, lower quartiles of steps taken in turns, the floor twice.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import LlamaConfig, LlamaForCausalLM

from benchmark import add_numbers, add_threads_and_json, benchmark, describe, make_parser, print_table, surroundings
from interpreter import KERNELS, interpreted
from methods import METHODS, Method, choose_methods
from paca.method.columns.together import has_triton
from paca.profiling.steps import TrainingStep, quartiles
from paca.workbench.base.options import positive
from step import prepare
from timing import FLOOR, FLOOR_AGAIN, time_in_turns

LAYERS_A_BLOCK = 7
ONE_KERNEL = "paca, one kernel"
_ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
_VIEWS = {"_unsafe_view", "detach", "lift_fresh", "_reshape_alias"}  # that don't say so of themselves
_MARKS = {"_record_function_enter_new", "_record_function_exit"}  # for a profiler


class Launches(NamedTuple):
    """Operators of one step that are kernels, by phase."""

    forward: int
    backward: int
    optimizer: int

    @property
    def total(self) -> int:
        """Of the whole step."""
        return sum(self)

    def beyond(self, floor: "Launches") -> "Launches":
        """What is added to another method's."""
        return Launches(*(own - other for own, other in zip(self, floor, strict=True)))


class KernelCounter(TorchDispatchMode):
    """Counts the operators that are dispatched while it is entered, without views and allocations.

    A kernel of Triton's is one as well, whatever its interpreter dispatches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _ALLOCATIONS | _VIEWS | _MARKS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> "KernelCounter":
        self._kernels: Any = sys.modules.get(KERNELS)
        if self._kernels is not None:
            self._launch = self._kernels.launch
            self._kernels.launch = self._count_kernel
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._kernels is not None:
            self._kernels.launch = self._launch
        super().__exit__(*error)

    def _count_kernel(self, kernel: Any, *arguments: Any) -> None:
        self.counts[kernel.__name__] += 1
        with _disable_current_modes():
            self._launch(kernel, *arguments)


def counted(run: Callable[[], Any]) -> tuple[Counter[str], Any]:
    """The operators of a call by name, and what it returned."""
    with KernelCounter() as counter:
        result = run()
    return counter.counts, result


def launches(step: TrainingStep) -> Launches:
    """Count the operators of one training step, which is not the first."""
    step.run()  # an optimizer's state comes about in the first
    forward, loss = counted(step.loss)
    backward, _ = counted(loss.backward)
    optimizer: Counter[str] = Counter()
    if step.optimizer is not None:
        optimizer, _ = counted(step.optimizer.step)
        step.optimizer.zero_grad(set_to_none=True)
    return Launches(forward.total(), backward.total(), optimizer.total())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__, methods=METHODS)
    parser.add_argument("--layers", type=whole_blocks, nargs="+", default=[28, 56], help="(default: 28 56)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="beside the floor (default: all)")
    add_numbers(parser, rank=(16, "of every method"), tokens=(4, "of a step"), steps=(25, "timed, of each method"))
    return add_threads_and_json(parser)


def whole_blocks(text: str) -> int:
    """Read a number of adapted layers; an `ArgumentTypeError` if they are no whole blocks."""
    layers = positive(text)
    if layers % LAYERS_A_BLOCK:
        raise argparse.ArgumentTypeError(f"{text} layers are no whole blocks: write a multiple of {LAYERS_A_BLOCK}.")
    return layers


def narrow_llama(layers: int) -> LlamaForCausalLM:
    """A Llama 32 wide, of so many linear layers without the head."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers // LAYERS_A_BLOCK, vocab_size=64))


def measure(methods: list[Method], layers: int, arguments: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """All figures at one depth, by name of the method."""
    steps = prepare(narrow_llama(layers), methods, arguments.tokens, arguments.rank)
    times = time_in_turns({name: step.run for name, step in steps.items()}, arguments.steps, f"{layers} layers")
    seconds = {name: quartiles(taken)["total"] for name, taken in times.items()}
    found = {name: launches(step) for name, step in steps.items()}
    if "paca" in steps and has_triton():
        with interpreted():
            found[ONE_KERNEL] = launches(steps["paca"])
    return {
        name: {
            **count.beyond(found[FLOOR])._asdict(),
            "total": count.beyond(found[FLOOR]).total,
            "host_us_a_layer": 1e6 * (seconds[name] - seconds[FLOOR]) / layers if name in seconds else None,
        }
        for name, count in found.items()
    }


def print_figures(figures: Mapping[str, Mapping[str, float | None]], layers: int) -> None:
    """The table of one depth."""
    print(f"\n{layers} adapted layers\n")
    columns = ("method", "launches beyond the floor", "a layer", "forward", "backward", "optimizer", "host µs a layer")
    rows = (
        (
            name,
            f"{row['total']:.0f}",
            f"{row['total'] / layers:.2f}",
            *(f"{row[phase]:.0f}" for phase in Launches._fields),
            "" if row["host_us_a_layer"] is None else f"{row['host_us_a_layer']:.1f}",
        )
        for name, row in figures.items()
        if name != FLOOR
    )
    print_table(columns, rows)


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count and time the methods at each depth, and print a table of each."""
    torch.set_num_threads(arguments.threads or 1)
    methods = choose_methods(arguments.methods, torch.float32)
    found = {}
    for layers in arguments.layers:
        found[str(layers)] = measure(methods, layers, arguments)
        print_figures(found[str(layers)], layers)
    result = {**surroundings(torch.device("cpu")), "rank": arguments.rank, "tokens": arguments.tokens}
    print(f"\n{describe(result)}\nThe noise of host time is what {FLOOR_AGAIN!r} shows.")
    return {**result, "layers": found}


if __name__ == "__main__":
    sys.exit(main())
