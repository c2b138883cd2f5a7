"""What needs a GPU to be known, in one command and under eight minutes: a step of LLaMA3-8B's shape, random weights.

    python benchmarks/gpu.py                             all of it on one GPU, bfloat16, rank 16
    python benchmarks/gpu.py --parts steps longest       some of it
    python benchmarks/gpu.py --shape tiny --device cpu   the benchmark itself, in seconds

It needs torch, transformers, peft and this package, and bitsandbytes for the rows in NF4. Methods are put onto one
base model, one after the other, and taken off again; the frozen floor is the first and the last of a table, so that
the two show the noise. A time is the lower quartile of the steps. What does not fit the GPU, or would come after the
time is up, is left out, and named. Bytes are what CUDA's allocator had at its peak; on the CPU, those of live
storages. Compiled rows are of four blocks, by inductor; on the CPU by aot_eager, which shows only that they run.
"""

import argparse
import copy
import gc
import importlib.util
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import paca
from benchmark import add_numbers, add_threads_and_json, benchmark, describe, make_parser, progress, surroundings
from methods import METHODS
from paca.forwards.loss import linear_cross_entropy
from paca.profiling.steps import TrainingStep, quartiles
from paca.workbench.base.markdown import table
from paca.workbench.base.options import positive
from paca.workbench.base.search import largest_that_fits
from paca.workbench.planning.models import find_config
from paca.workbench.planning.packed import pack_linears
from timing import FLOOR, FLOOR_AGAIN

TINY = "tiny"
_TRIALS_ALIKE = 1024  # tokens: what the longest sequence is a multiple of
_BLOCKS_COMPILED = 4  # the whole model would take minutes to compile
_LEAN = ", lean"


@dataclass(frozen=True)
class Row:
    """A method as a table has it.

    Args:
        method: In `METHODS`.
        lean: With the forwards of `paca.lean`, and a loss without logits.
        label: Where it is not the method's name.
    """

    method: str
    lean: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return (self.label or self.method) + _LEAN * self.lean


STEPS = tuple(
    Row(name, lean)
    for name in (FLOOR, "paca", "lora", "lora-base-dtype", "miss", "dora", "swap")
    for lean in (False, True)
    if not lean or name in (FLOOR, "paca", "lora", "lora-base-dtype")
)
LONGEST = (
    *tuple(Row(name, lean) for name in ("paca", "lora", "lora-base-dtype") for lean in (False, True)),
    Row("dora"),
)
GROWING = tuple(Row(name) for name in ("paca", "lora", "lora-base-dtype"))
COMPILED = (*tuple(Row(name) for name in (FLOOR, "paca", "lora", "miss")), Row(FLOOR, True), Row("paca", True))
NF4 = (Row(FLOOR), Row("paca", label="qpaca"), Row("lora", label="qlora"))


class LeanStep(TrainingStep):
    """A step whose loss makes no logits, in 16 bits either: its value is rounded to as many, its gradients are not."""

    def loss(self) -> Tensor:
        """Run the forward pass; a scalar."""
        outputs = self.model(
            inputs_embeds=self.batch["inputs_embeds"], logits_to_keep=1, output_hidden_states=True, use_cache=False
        )
        head = self.model.get_output_embeddings()
        targets = F.pad(self.batch["labels"][:, 1:], (0, 1), value=-100)
        return linear_cross_entropy(outputs.hidden_states[-1], head, targets)


class Kit:
    """The base model, and what is measured on it.

    Args:
        arguments: The command line's.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device: torch.device = arguments.device
        self.rank, self.rounds = arguments.rank, arguments.steps
        self.tokens = arguments.tokens
        self.longest = arguments.longest
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.left_out: dict[str, str] = {}
        self.config = _config(arguments.shape)
        self.base = self._load()

    def _load(self) -> Any:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(self.config, dtype=torch.bfloat16)
        return model.requires_grad_(False).train()

    def step(self, row: Row, sequences: int, tokens: int, base: Any = None) -> TrainingStep:
        """Put a method onto the base model; the step holds it, and without the step it is gone."""
        base = self.base if base is None else base
        torch.manual_seed(0)
        shared = {id(parameter): parameter for parameter in base.parameters()}
        model = METHODS[row.method].prepare(copy.deepcopy(base, shared), self.rank)
        if row.lean:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                paca.lean(model, loss=False)
        ids = torch.randint(self.config.vocab_size, (sequences, tokens), device=self.device)
        batch = {"inputs_embeds": base.get_input_embeddings()(ids).detach(), "labels": ids}
        lean_loss = row.lean and hasattr(F, "linear_cross_entropy")
        return (LeanStep if lean_loss else TrainingStep)(model, batch)

    def figures(self, step: TrainingStep, rounds: int | None = None) -> dict[str, float]:
        """Milliseconds of a step by part, and the bytes of its peak."""
        for _ in range(2):
            step.run()
        times = quartiles([step.run() for _ in range(rounds or self.rounds)])
        return {f"{part}_ms": 1000 * seconds for part, seconds in times.items()} | {"peak_bytes": self.peak(step)}

    def peak(self, step: TrainingStep) -> int:
        """Bytes at the peak of a step that has been taken before."""
        if self.device.type != "cuda":
            return step.peak().total
        torch.cuda.reset_peak_memory_stats(self.device)
        step.run()
        return torch.cuda.max_memory_allocated(self.device)

    def measure(self, part: str, rows: Iterable[Row], figures: Callable[[Row], Any]) -> dict[str, Any]:
        """Measure the rows of a part; those that can't be are left out, and named with the reason."""
        found: dict[str, Any] = {}
        for row in rows:
            name = FLOOR_AGAIN if row.name in found else row.name
            if time.monotonic() > self.deadline:
                self.left_out[f"{part}: {name}"] = "the time was up"
                continue
            progress(f"{part}: {name}")
            try:
                found[name] = figures(row)
            except torch.OutOfMemoryError:
                self.left_out[f"{part}: {name}"] = "it does not fit the GPU's memory"
            except Exception as error:  # one row must not take the others with it
                self.left_out[f"{part}: {name}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            _free(self.device)
        progress("")
        return found

    def steps(self) -> dict[str, Any]:
        """Time and peak of a step of every method."""
        return self.measure("steps", (*STEPS, Row(FLOOR)), lambda row: self.figures(self.step(row, 1, self.tokens)))

    def longest_sequences(self) -> dict[str, Any]:
        """The longest sequence that a step takes, in tokens, without checkpointing."""

        def excess(row: Row, tokens: int) -> float:
            progress(f"longest: {row.name}, {tokens} tokens")
            fits = self.fits(row, 1, tokens)
            _free(self.device)  # not earlier: what ran out of memory is held until the call is over
            return -math.inf if fits else math.inf

        step = min(_TRIALS_ALIKE, self.longest)
        return self.measure(
            "longest",
            LONGEST,
            lambda row: largest_that_fits(lambda tokens: excess(row, tokens), step, self.longest, 4),
        )

    def fits(self, row: Row, sequences: int, tokens: int) -> bool:
        """Whether two steps, the second with the optimizer's state, do without running out of memory."""
        try:
            step = self.step(row, sequences, tokens)
            for _ in range(2):
                step.run()
        except torch.OutOfMemoryError:
            return False
        return True

    def growing_batches(self) -> dict[str, Any]:
        """Tokens per second, by sequences per step, until memory is full."""

        def throughput(row: Row) -> dict[int, float]:
            found: dict[int, float] = {}
            for sequences in (1, 2, 4, 8, 16, 32)[: None if self.device.type == "cuda" else 2]:
                if found and not self.fits(row, sequences, self.tokens):
                    break
                _free(self.device)
                figures = self.figures(self.step(row, sequences, self.tokens), rounds=3)
                found[sequences] = 1000 * sequences * self.tokens / figures["total_ms"]
                _free(self.device)
            return found

        return self.measure("batches", GROWING, throughput)

    def compiled(self) -> dict[str, Any]:
        """Time, peak and bytes saved for backward of a few blocks, eager and compiled."""
        small = copy.copy(self.config)
        small.num_hidden_layers = min(_BLOCKS_COMPILED, small.num_hidden_layers)
        whole, self.config = self.config, small
        try:
            base = self._load()
        finally:
            self.config = whole

        def both(row: Row) -> dict[str, Any]:
            step = self.step(row, 1, self.tokens, base)
            eager = self.figures(step) | {"kept_bytes": saved_bytes(step)}
            torch.compiler.reset()
            step.model = torch.compile(step.model, backend="inductor" if self.device.type == "cuda" else "aot_eager")
            return {"eager": eager, "compiled": self.figures(step) | {"kept_bytes": saved_bytes(step)}}

        return self.measure("compiled", COMPILED, both)

    def four_bits(self) -> dict[str, Any]:
        """Time and peak of a step over NF4 weights."""
        if importlib.util.find_spec("bitsandbytes") is None:
            self.left_out["nf4: all"] = "bitsandbytes is not installed"
            return {}
        pack_linears(self.base, torch.bfloat16)  # the last part: nothing needs the plain weights any more
        _free(self.device)
        return self.measure("nf4", (*NF4, NF4[0]), lambda row: self.figures(self.step(row, 1, self.tokens)))


PARTS: dict[str, Callable[[Kit], dict[str, Any]]] = {
    "steps": Kit.steps,
    "longest": Kit.longest_sequences,
    "batches": Kit.growing_batches,
    "compiled": Kit.compiled,
    "nf4": Kit.four_bits,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument(
        "--shape", default="llama3-8b", help=f"{TINY}, or what `paca plan` takes (default: %(default)s)"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="(default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="(default: all)")
    parser.add_argument("--tokens", type=positive, help="per sequence (default: 512; of the tiny shape 32)")
    parser.add_argument("--longest", type=positive, help="sequence to try (default: 65536; of the tiny shape 64)")
    parser.add_argument("--minutes", type=float, default=8, help="start no row after as many (default: %(default)s)")
    add_numbers(parser, rank=(16, "of every method"), steps=(7, "timed steps of each"))
    return add_threads_and_json(parser)


def _config(shape: str) -> Any:
    if shape == TINY:
        from models import tiny_config

        return tiny_config()
    return find_config(shape)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def saved_bytes(step: TrainingStep) -> int:
    """Bytes that a forward pass saves for backward, above what lives anyway.

    A tracker of operators would not do: torch runs compiled code eagerly under one.
    """
    held = list(step.held())  # as long as this is asked, so that nothing else gets their addresses
    alive = {tensor.untyped_storage()._cdata for tensor in held}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in alive:
            found[storage._cdata] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss()
    del loss
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _steps_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    floor = rows.get(FLOOR)
    return table(
        ("method", "step ms", "× floor", "forward", "backward", "optimizer", "peak GiB"),
        (
            (
                name,
                f"{row['total_ms']:.1f}",
                f"{row['total_ms'] / floor['total_ms']:.3f}" if floor else "–",
                *(f"{row[f'{part}_ms']:.1f}" for part in ("forward", "backward", "optimizer")),
                _gib(row["peak_bytes"]),
            )
            for name, row in rows.items()
        ),
    )


def _compiled_table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    return table(
        ("method", "eager ms", "compiled ms", "eager kept MiB", "compiled kept MiB"),
        (
            (
                name,
                *(f"{row[way]['total_ms']:.1f}" for way in ("eager", "compiled")),
                *(f"{row[way]['kept_bytes'] / 2**20:.1f}" for way in ("eager", "compiled")),
            )
            for name, row in rows.items()
        ),
    )


def _batches_table(rows: Mapping[str, Mapping[int, float]]) -> str:
    sizes = sorted({size for row in rows.values() for size in row})
    return table(
        ("tokens per second at a batch of", *map(str, sizes)),
        ((name, *(f"{row[size]:,.0f}" if size in row else "–" for size in sizes)) for name, row in rows.items()),
    )


def tables(found: Mapping[str, Any]) -> Iterator[str]:
    """The parts as Markdown tables, those that have a row."""
    writers = {
        "steps": _steps_table,
        "longest": lambda rows: table(("longest sequence", "tokens"), ((name, f"{n:,}") for name, n in rows.items())),
        "batches": _batches_table,
        "compiled": _compiled_table,
        "nf4": _steps_table,
    }
    for part, rows in found.items():
        if rows:
            yield f"{part}\n\n{writers[part](rows)}"


def against_lora(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Rows of benchmarks/paper.md: claim, what the paper reports, and what was found here, LoRA in either dtype."""

    def change(part: str, value: Callable[[Any], float]) -> str | None:
        rows = found.get(part) or {}
        said = [
            f"{100 * (value(rows['paca']) / value(rows[name]) - 1):+.0f} % ({name})"
            for name in ("lora", "lora-base-dtype")
            if "paca" in rows and rows.get(name)
        ]
        return ", ".join(said) or None

    claims = (
        ("time of a step, PaCA against LoRA", "−22 %", change("steps", lambda row: row["total_ms"])),
        ("memory of a step, PaCA against LoRA", "−16 %", change("steps", lambda row: row["peak_bytes"])),
        ("longest sequence, beyond LoRA", "+23 %", change("longest", float)),
        ("throughput, growing batch, against LoRA", "+16 %", change("batches", lambda row: max(row.values()))),
    )
    return ((claim, paper, here) for claim, paper, here in claims if here is not None)


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts, and print their tables, the rows of the paper, and what was left out."""
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        raise paca.PacaError("--device cuda: torch finds no GPU here; try the kit out with --shape tiny --device cpu.")
    tiny = arguments.shape == TINY
    arguments.tokens = arguments.tokens or (32 if tiny else 512)
    arguments.longest = arguments.longest or (64 if tiny else 65536)
    result: dict[str, Any] = {**surroundings(arguments.device), "shape": arguments.shape, "rank": arguments.rank}
    result |= {"tokens": arguments.tokens, "parts": {}, "left_out": {}}
    try:
        kit = Kit(arguments)
    except torch.OutOfMemoryError:
        result["left_out"] = {
            f"{part}: all": "the base model does not fit the GPU's memory" for part in arguments.parts
        }
    else:
        for part in (name for name in PARTS if name in arguments.parts):
            result["parts"][part] = PARTS[part](kit)
        result["left_out"] = kit.left_out
    for text in tables(result["parts"]):
        print(f"\n{text}")
    print("\n" + table(("claim", "paper", "here"), against_lora(result["parts"]), text=("paper", "here")))
    for name, reason in result["left_out"].items():
        print(f"left out: {name}: {reason}")
    print(f"\n{arguments.shape}, bfloat16, {arguments.tokens} tokens, rank {arguments.rank}; {describe(result)}")
    return result


if __name__ == "__main__":
    sys.exit(main())
