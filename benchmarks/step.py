"""Step time and activation bytes kept, per method, as ratios to the frozen floor.

    python benchmarks/step.py                                   SmolLM2-135M, 256 tokens, rank 16, every method
    python benchmarks/step.py --settings 256:16 512:8 32:8      several settings in one run
    python benchmarks/step.py --methods paca lora --steps 5     a quick look
    python benchmarks/step.py --config tiny                     the benchmark itself, in seconds

Every method trains a copy of the same model on the same batch, with a fused AdamW. The steps are interleaved in one
process, every other round in reverse; a time is the lower quartile over the rounds. The frozen floor, forward and
input gradients with nothing to train, is timed twice under two names: their ratio is the noise of the run. Bytes are
those of live storages, exact and independent of the machine.
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from methods import METHODS, Method, check_that_methods_differ, choose_methods
from models import SMOLLM2, load_base
from paca.profiling.environment import machine
from paca.profiling.steps import TrainingStep, interleave
from paca.workbench.base.options import positive
from report import Figures, figures, noise, table, versions, with_ratios

_WARM_UP_STEPS = 2
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def setting(text: str) -> tuple[int, int]:
    """Read `TOKENS:RANK`.

    Args:
        text: For example `256:16`.

    Returns:
        Tokens and rank.

    Raises:
        argparse.ArgumentTypeError: If the text is anything else.
    """
    tokens, _, rank = text.partition(":")
    if not (tokens.isdigit() and rank.isdigit() and int(tokens) > 1 and int(rank) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKENS:RANK; write for example 256:16.")
    return int(tokens), int(rank)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    listing = "\n".join(f"  {method.name:<16} {method.description}" for method in METHODS.values())
    parser = argparse.ArgumentParser(
        prog="python benchmarks/step.py",
        description=__doc__,
        epilog=f"methods:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--settings", nargs="+", type=setting, metavar="TOKENS:RANK", help="settings to measure, one after the other"
    )
    parser.add_argument("--tokens", type=positive, default=256, help="tokens per step, if --settings is not given")
    parser.add_argument("--rank", type=positive, default=16, help="rank of every method, if --settings is not given")
    parser.add_argument("--steps", type=positive, default=17, help="timed steps of each method (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="beside the floor (default: all)")
    parser.add_argument(
        "--config", default=SMOLLM2, help="smollm2 (real weights), tiny, or a config.json (random weights)"
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the base model (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=positive, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file as well")
    return parser


def prepare(base: PreTrainedModel, methods: list[Method], tokens: int, rank: int) -> dict[str, TrainingStep]:
    """Give each method a copy of the model and a step on the same batch.

    Args:
        base: The model; stays as it is.
        methods: What to measure.
        tokens: Length of the batch's one sequence.
        rank: Of every method.

    Returns:
        The steps, by method's name.
    """
    device = base.device
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(base.config.vocab_size, (1, tokens), generator=generator).to(device)
    embeddings = base.get_input_embeddings()(batch).detach()
    torch.manual_seed(0)
    models = {method.name: method.prepare(copy.deepcopy(base), rank) for method in methods}
    check_that_methods_differ(models)
    return {
        name: TrainingStep(model, {"inputs_embeds": embeddings, "labels": batch}) for name, model in models.items()
    }


def measure(base: PreTrainedModel, methods: list[Method], tokens: int, rank: int, rounds: int) -> dict[str, Figures]:
    """Measure all methods at one setting.

    Args:
        base: The model; stays as it is.
        methods: What to measure.
        tokens: Length of the batch's one sequence.
        rank: Of every method.
        rounds: Timed steps of each method.

    Returns:
        The figures, by method's name.
    """
    steps = prepare(base, methods, tokens, rank)
    for name, step in steps.items():
        _progress(f"{tokens} tokens, rank {rank}: warming up {name}")
        for _ in range(_WARM_UP_STEPS):
            step.run()
    _progress(f"{tokens} tokens, rank {rank}: counting bytes")
    kept = {name: step.kept_bytes() for name, step in steps.items()}
    started = time.perf_counter()

    def report(done: int) -> None:
        seconds = time.perf_counter() - started
        _progress(f"{tokens} tokens, rank {rank}: round {done} of {rounds}, {seconds:.0f} s")

    times = interleave({name: step.run for name, step in steps.items()}, rounds, report)
    _progress("")
    return {
        name: figures(times[name], kept[name], sum(parameter.numel() for parameter in step.trained))
        for name, step in steps.items()
    }


def _progress(text: str) -> None:
    """Replace the line of progress on standard error."""
    print(f"\r{text:<70}", end="\n" if not text else "", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables and write the JSON file.

    Args:
        argv: The arguments; those of the command line when left out.

    Returns:
        The exit status.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        methods = choose_methods(arguments.methods, _DTYPES[arguments.dtype])
        base = load_base(arguments.config, _DTYPES[arguments.dtype], arguments.device)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    result: dict[str, Any] = {
        "machine": machine(arguments.device),
        "versions": versions(),
        "model": arguments.config,
        "dtype": arguments.dtype,
        "steps": arguments.steps,
        "settings": [],
    }
    for tokens, rank in arguments.settings or [(arguments.tokens, arguments.rank)]:
        measured = measure(base, methods, tokens, rank, arguments.steps)
        print(f"\n{arguments.config}, {arguments.dtype}, {tokens} tokens, rank {rank}; noise {noise(measured):.3f}\n")
        print(table(measured), flush=True)
        result["settings"].append(
            {"tokens": tokens, "rank": rank, "noise": noise(measured), "methods": with_ratios(measured)}
        )
    print(f"\n{describe(result)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def describe(result: dict[str, Any]) -> str:
    """One line that names the machine and the versions of a result."""
    where, found = result["machine"], result["versions"]
    named = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    processor = f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, load {where['load_average']:.1f}"
    return f"{processor}, {where['device']}; {named}"


if __name__ == "__main__":
    sys.exit(main())
