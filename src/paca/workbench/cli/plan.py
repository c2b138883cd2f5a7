"""`paca plan MODEL`: the peak memory and the operations of a training step per method, without weights or a GPU."""

import argparse
import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.garbage import imports_spared
from paca.workbench.base.options import amount, first_word, positive, several
from paca.workbench.cli.verb import Verb, names_recipe
from paca.workbench.models.names import names_model
from paca.workbench.planning.shapes import find_shape

EXAMPLE = """\
example:
  $ paca plan llama3-8b --methods paca,lora,dora --gpu a100-80gb --seq 512
  $ paca plan llama3-8b --methods paca,lora --gpu 80GB --max-seq
  $ paca plan llama3.1-70b-qpaca-oasst1 --methods qpaca,qlora --gpu h100
  $ paca plan llama3-8b --methods paca,lora --gpu a100-80gb --max-seq --lean
  $ paca plan path/to/config.json --checkpointing --json
"""
DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca plan` takes. What is not given is taken from the recipe, if MODEL is one."""
    parser.usage = "%(prog)s MODEL [OPTION ...]"
    first_word(
        parser,
        "model",
        _names_model,
        metavar="MODEL",
        help="a built-in shape, a config.json, its folder, a Hub name, or a recipe",
    )
    several(parser, "--methods", "METHOD", "paca lora dora full qpaca qlora, or PEFT's")
    parser.add_argument("--gpu", metavar="GPU", help="a name such as a100-80gb, or a size such as 80GB")
    parser.add_argument("--seq", type=positive, metavar="N", help="tokens per sequence (default: 512)")
    parser.add_argument("--batch", type=positive, metavar="N", help="sequences or images per step (default: 1)")
    parser.add_argument(
        "--pixels", type=positive, metavar="N", help="height and width of images (default: as the model)"
    )
    parser.add_argument("--rank", type=positive, metavar="N", help="of every adapter (default: 16)")
    parser.add_argument(
        "--budget", type=amount, metavar="N", help="for PaCA, in place of a rank: values, or a share below 1"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the base (default: bfloat16)")
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, help="bfloat16 autocast in forward")
    parser.add_argument("--adapter-in-base-dtype", action="store_true", help="do not train adapters in float32")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="recompute blocks in backward")
    parser.add_argument(
        "--lean", action=argparse.BooleanOptionalAction, help="keep the least, as paca.lean does; the loss is chunked"
    )
    parser.add_argument("--optimizer", metavar="NAME", help="as Trainer's optim, such as adamw_bnb_8bit")
    parser.add_argument("--loss", metavar="NAME", help="full, or chunked as `paca finetune` computes it")
    parser.add_argument("--attention", choices=("fused", "sdpa"), help="what a GPU's attention keeps, or the CPU's")
    parser.add_argument("--ranks", type=positive, metavar="N", help="shard over N GPUs by FSDP2; figures are for one")
    parser.add_argument("--max-seq", action="store_true", help="search the longest sequence that fits the GPU")
    parser.add_argument("--max-batch", action="store_true", help="search the largest batch that fits the GPU")
    parser.add_argument("--png", metavar="FILE", help="draw what the memory goes into")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the configuration brings")


def _names_model(word: str) -> bool:
    """Whether a word can be no method: a Hub name has a slash."""
    return "/" in word or find_shape(word) is not None or names_model(word) or names_recipe(word)


def run(arguments: argparse.Namespace) -> int:
    """Plan, and print the tables."""
    with imports_spared() as imported:
        from paca.workbench.planning.gpus import find_gpu
        from paca.workbench.planning.progress import PlanProgress
        from paca.workbench.planning.report import draw
        from paca.workbench.planning.request import planned_model, settings_of
        from paca.workbench.planning.rows import make_rows
        from paca.workbench.planning.simulate import Planner

        imported()
        gpu = find_gpu(arguments.gpu) if arguments.gpu else None
        searches = tuple(name for name in ("max_seq", "max_batch") if getattr(arguments, name))
        if gpu is None and searches:
            raise PacaError(
                "--max-seq and --max-batch need to know what to fit into: pass --gpu 80GB, or a GPU's name."
            )
        planned = planned_model(arguments.model, arguments.trust_remote_code)
        settings = settings_of(planned, vars(arguments))
        for warning in planned.warnings(settings[0]):
            print(f"warning: {warning}", file=sys.stderr)
        with warnings.catch_warnings(), PlanProgress(len(settings), len(searches)) as progress:
            warnings.simplefilter("ignore")  # asides of libraries, which nothing can be done about here
            planner = Planner(planned.config, progress.entered)
            rows, refused = make_rows(planner, settings, gpu, searches, progress.say)
        for error in refused:
            print(f"paca plan: {error}", file=sys.stderr)
        title = planned.title(settings[0])
        if arguments.png:
            draw(Path(arguments.png), title, rows, None if gpu is None else gpu.bytes)
        if arguments.json:
            described = None if gpu is None else dataclasses.asdict(gpu)
            print(json.dumps({"model": arguments.model, "gpu": described, "methods": rows}, indent=2))
        else:
            _print_tables(title, rows, gpu)
            for note in planner.notes():
                print(f"note: {note}")
            _print_advice(planner, settings, rows, gpu)
        return 0


def _print_tables(title: str, rows: list[dict[str, Any]], gpu: Any) -> None:
    from paca.workbench.base.terminal import output_console
    from paca.workbench.planning.report import memory_table, operations_table, uncalled_lines, where_lines

    console = output_console()
    console.print(memory_table(f"{title}: peak of a training step, GiB", rows))
    console.print(operations_table(rows, gpu))
    for line in (*where_lines(rows), *uncalled_lines(rows)):
        console.print(line, highlight=False, soft_wrap=True)


def _print_advice(planner: Any, settings: list[Any], rows: list[dict[str, Any]], gpu: Any) -> None:
    if gpu is None or any(row["fits"] for row in rows):
        return
    from paca.workbench.planning.rows import advice

    least = min(rows, key=lambda row: row["total"])
    setting = next(setting for setting in settings if setting.method == least["method"])
    print(f"Nothing fits {gpu.name}: {least['method']} comes nearest and lacks {least['over'] / 2**30:.2f} GiB.")
    print(advice(planner, setting, gpu))


VERB = Verb(
    "plan",
    "Will it fit? Memory and operations of a training step per method, without a GPU.",
    EXAMPLE,
    add_arguments,
    run,
)
