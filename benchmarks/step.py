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
import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmark import add_threads_and_json, benchmark, describe, make_parser, surroundings
from methods import METHODS, Method, check_that_methods_differ, choose_methods
from models import CONFIG_HELP, DTYPES, SMOLLM2, load_base
from paca.profiling.steps import TrainingStep
from paca.workbench.base.options import positive
from report import Figures, figures_of, noise, table, with_ratios
from timing import time_in_turns


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
    parser = make_parser(__file__, __doc__, methods=METHODS)
    parser.add_argument(
        "--settings", nargs="+", type=setting, metavar="TOKENS:RANK", help="settings to measure, one after the other"
    )
    parser.add_argument("--tokens", type=positive, default=256, help="tokens per step, if --settings is not given")
    parser.add_argument("--rank", type=positive, default=16, help="rank of every method, if --settings is not given")
    parser.add_argument("--steps", type=positive, default=17, help="timed steps of each method (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="beside the floor (default: all)")
    parser.add_argument("--config", default=SMOLLM2, help=CONFIG_HELP)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base model (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return add_threads_and_json(parser)


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
    inputs = {True: {"input_ids": batch}, False: {"inputs_embeds": embeddings}}
    return {
        method.name: TrainingStep(models[method.name], {**inputs[method.from_ids], "labels": batch})
        for method in methods
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
    runs = {name: step.run for name, step in steps.items()}
    return figures_of(steps, time_in_turns(runs, rounds, f"{tokens} tokens, rank {rank}"))


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the methods at each setting, and print a table of each."""
    dtype = DTYPES[arguments.dtype]
    methods = choose_methods(arguments.methods, dtype)
    base = load_base(arguments.config, dtype, arguments.device)
    result: dict[str, Any] = {
        **surroundings(arguments.device),
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
    return result


if __name__ == "__main__":
    sys.exit(main())
