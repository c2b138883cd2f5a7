"""Peak memory and step time in vision: PaCA beside LoRA on ViT-B/16, beside full training on EfficientNetV2-L.

    python benchmarks/vision.py                                  all networks: memory, then time
    python benchmarks/vision.py --networks vit --only memory     a part of it
    python benchmarks/vision.py --networks tiny-vit tiny-cnn --batch 2 --steps 2

Memory is the peak of one whole training step at full size, weights, gradients and AdamW's state included, in bytes of
live storages. The step runs on fake tensors, which have shapes, strides and storages without content: so a step that
no memory here could hold is counted exactly, and the count equals that of a real step (`--real` takes one).

Time is that of real steps in float32 at a smaller size, all methods interleaved in one process, every other round in
reverse; lower quartiles. The frozen floor is timed twice under two names: their ratio is the noise of the run.
"""

import argparse
import copy
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from benchmark import (
    add_numbers,
    add_threads_and_json,
    benchmark,
    make_parser,
    progress,
    versions,
    write_results,
)
from paca.profiling.environment import cpu_name
from paca.profiling.steps import TrainingStep, quartiles
from paca.workbench.base.markdown import table
from timing import FLOOR, FLOOR_AGAIN, time_in_turns
from vision_methods import CLASSES, METHODS, NETWORKS, Network, logits_of

_PRECISIONS = {"float32": False, "bfloat16 autocast": True}


class ImageStep(TrainingStep):
    """A step of image classification on a fixed batch. Only a network that trains nothing computes input gradients.

    Args:
        network: With a method put on.
        pixels: Shape `(batch, 3, size, size)`.
        labels: Shape `(batch,)`.
        autocast: Whether forward runs under bfloat16 autocast.
    """

    def __init__(self, network: nn.Module, pixels: Tensor, labels: Tensor, autocast: bool = False) -> None:
        super().__init__(network, {"pixels": pixels, "labels": labels})
        self.pixels, self.labels = self.batch["pixels"], labels
        self.pixels.requires_grad_(not self.trained)
        self.autocast = autocast

    def loss(self) -> Tensor:
        """Run the forward pass; a scalar."""
        with torch.autocast(self.pixels.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model(self.pixels)
        return F.cross_entropy(logits_of(output), self.labels)


def prepare(network: Network, method: str) -> nn.Module:
    """Build a network and put a method onto it, ready to be trained."""
    torch.manual_seed(0)
    return METHODS[method].prepare(network.build(), network.head).train()


def peak_bytes(network: Network, method: str, batch: int, size: int, autocast: bool, real: bool = False) -> int:
    """Count the peak of one training step, after a first one has made the optimizer's state.

    Args:
        network: What is trained.
        method: A name in `METHODS`.
        batch: Images per step.
        size: Their height and width in pixels.
        autocast: Whether forward runs under bfloat16 autocast.
        real: Compute with real numbers instead of fake tensors.

    Returns:
        Bytes.
    """
    model = prepare(network, method)
    mode: AbstractContextManager[Any] = nullcontext()
    if not real:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(fake):
            model = copy.deepcopy(model)
        mode = fake
    with mode:
        step = make_step(model, batch, size, autocast)
        step.run()
        return step.peak().total


def make_step(model: nn.Module, batch: int, size: int, autocast: bool = False) -> ImageStep:
    """Put a network into a step on random images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    return ImageStep(model, pixels, torch.arange(batch) % CLASSES, autocast)


def measure_memory(network: Network, batch: int, size: int, real: bool) -> dict[str, dict[str, int]]:
    """Peaks of all of a network's methods, by precision and method."""
    peaks: dict[str, dict[str, int]] = {}
    for precision, autocast in _PRECISIONS.items():
        for method in network.methods:
            progress(f"{network.name}, {precision}: counting bytes of {method}")
            peaks.setdefault(precision, {})[method] = peak_bytes(network, method, batch, size, autocast, real)
    progress("")
    return peaks


def measure_time(network: Network, batch: int, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a real float32 step of all of a network's methods and of the floor, by method and part."""
    methods = (FLOOR, FLOOR_AGAIN, *network.methods)
    runs = {method: make_step(prepare(network, method), batch, size).run for method in methods}
    return {method: quartiles(taken) for method, taken in time_in_turns(runs, rounds, network.name).items()}


def memory_table(network: Network, peaks: dict[str, dict[str, int]]) -> str:
    """Peaks as a Markdown table, with ratios to the first method."""
    reference, *_ = network.methods
    columns = [title for name in peaks for title in (f"{name}, MiB", f"× {reference}")]
    rows = (
        [method]
        + [
            cell
            for found in peaks.values()
            for cell in (f"{found[method] / 2**20:,.0f}", f"{found[method] / found[reference]:.3f}")
        ]
        for method in network.methods
    )
    return table(["method", *columns], rows)


def time_table(network: Network, times: dict[str, dict[str, float]]) -> str:
    """Times as a Markdown table, with ratios to the first method and to the floor."""
    reference, *_ = network.methods
    columns = ("method", "step ms", f"× {reference}", "× floor", "forward", "backward", "optimizer")
    rows = []
    for method, parts in times.items():
        ratios = [parts["total"] / times[other]["total"] for other in (reference, FLOOR)]
        milliseconds = [f"{1000 * parts[part]:.1f}" for part in ("forward", "backward", "optimizer")]
        cells = (f"{1000 * parts['total']:.1f}", *(f"{ratio:.3f}" for ratio in ratios), *milliseconds)
        rows.append((method, *cells))
    return table(columns, rows)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__, networks=NETWORKS, methods=METHODS)
    full_size = [name for name in NETWORKS if not name.startswith("tiny")]
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", default=full_size)
    parser.add_argument("--only", choices=("memory", "time"), help="measure one of the two")
    parser.add_argument("--real", action="store_true", help="count bytes of a real step, not of one on fake tensors")
    add_numbers(parser, batch=(64, "images per step, for memory"), size=(224, "pixels, for memory"))
    add_numbers(parser, time_batch=(4, "images per timed step"), time_size=(224, "pixels, for time"))
    add_numbers(parser, steps=(9, "timed steps of each method"))
    return add_threads_and_json(parser)


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each network, and print its tables."""
    result: dict[str, Any] = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "versions": versions()}
    for network in (NETWORKS[name] for name in arguments.networks):
        found = result[network.name] = {}
        if arguments.only != "time":
            peaks = found["peak_bytes"] = measure_memory(network, arguments.batch, arguments.size, arguments.real)
            print(f"\n{network.name}, peak of a step, batch {arguments.batch}, {arguments.size} pixels\n")
            print(memory_table(network, peaks), flush=True)
        if arguments.only != "memory":
            times = found["seconds"] = measure_time(
                network, arguments.time_batch, arguments.time_size, arguments.steps
            )
            print(f"\n{network.name}, float32, batch {arguments.time_batch}, {arguments.time_size} pixels\n")
            print(time_table(network, times), flush=True)
        write_results(arguments.json, result)
    print(f"\n{result['cpu']}, {result['threads']} threads, torch {torch.__version__}")
    return result


if __name__ == "__main__":
    sys.exit(main())
