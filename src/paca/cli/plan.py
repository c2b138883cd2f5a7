"""`paca plan MODEL`: the peak memory of a training step per method, without weights and without a GPU."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paca.cli.verb import Verb
from paca.errors import PacaError

EXAMPLE = """\
example:
  $ paca plan llama3-8b --methods paca lora dora --gpu a100-80gb --seq 512
  $ paca plan llama3-8b --methods paca lora --gpu 80GB --max-seq
  $ paca plan path/to/config.json --checkpointing --json
"""
SEQUENCE_STEP = 128
LONGEST, LARGEST = 2**20, 2**14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca plan` takes.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument("model", metavar="MODEL", help="a built-in shape, a config.json, its folder, or a Hub name")
    parser.add_argument("--methods", nargs="+", default=["paca", "lora", "dora", "full"], metavar="METHOD")
    parser.add_argument("--gpu", metavar="GPU", help="a name such as a100-80gb, or a size such as 80GB")
    parser.add_argument("--seq", type=_positive, default=512, help="tokens per sequence (default: %(default)s)")
    parser.add_argument("--batch", type=_positive, default=1, help="sequences per step (default: %(default)s)")
    parser.add_argument("--rank", type=_positive, default=16, help="of every adapter (default: %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the base")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast in forward, as Trainer's bf16=True")
    parser.add_argument("--adapter-in-base-dtype", action="store_true", help="do not train adapters in float32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute each block in backward")
    parser.add_argument("--attention", choices=("fused", "sdpa"), default="fused", help="what attention keeps")
    parser.add_argument("--max-seq", action="store_true", help="search the longest sequence that fits the GPU")
    parser.add_argument("--max-batch", action="store_true", help="search the largest batch that fits the GPU")
    parser.add_argument("--png", metavar="FILE", help="draw what the memory goes into")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the configuration brings")


def run(arguments: argparse.Namespace) -> int:
    """Plan, and print the table.

    Args:
        arguments: What was typed.

    Returns:
        0.

    Raises:
        PacaError: If something was asked that cannot be done.
    """
    try:
        import rich  # noqa: F401 - looked for before the work, not after it
    except ModuleNotFoundError as error:
        raise PacaError("The package 'rich' is missing. Type: pip install 'paca[train]'") from error
    from paca.planning.gpus import find_gpu
    from paca.planning.models import find_config
    from paca.planning.report import draw
    from paca.planning.simulate import find_method

    for name in arguments.methods:
        find_method(name)
    gpu = find_gpu(arguments.gpu) if arguments.gpu else None
    if gpu is None and (arguments.max_seq or arguments.max_batch):
        raise PacaError("--max-seq and --max-batch need to know what to fit into: pass --gpu 80GB, or a GPU's name.")
    config = find_config(arguments.model, arguments.trust_remote_code)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and arguments.seq > positions:
        print(f"warning: {arguments.seq} tokens are more than the model's {positions} positions", file=sys.stderr)
    rows = [_row(config, name, gpu, arguments) for name in dict.fromkeys(arguments.methods)]
    if arguments.png:
        title = f"{arguments.model}, {arguments.batch} × {arguments.seq} tokens"
        draw(Path(arguments.png), title, rows, None if gpu is None else gpu.bytes)
    if arguments.json:
        print(
            json.dumps({"model": arguments.model, "gpu": gpu and dataclasses.asdict(gpu), "methods": rows}, indent=2)
        )
    else:
        _print_table(arguments, rows, gpu)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _row(config: Any, method: str, gpu: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from paca.planning.search import largest_that_fits
    from paca.planning.simulate import Setting, simulate

    setting = Setting(
        method,
        arguments.rank,
        arguments.batch,
        arguments.seq,
        dtype=getattr(torch, arguments.dtype),
        autocast=arguments.autocast,
        float32_adapter=not arguments.adapter_in_base_dtype,
        checkpointing=arguments.checkpointing,
        attention=arguments.attention,
        block=512,
    )
    peak = simulate(config, setting)
    row = {"method": method, **dataclasses.asdict(peak)}
    if gpu is not None:
        row["fits"] = peak.total <= gpu.bytes
        row["over"] = max(0, peak.total - gpu.bytes)

    def excess(**changes: Any) -> int:
        return simulate(config, dataclasses.replace(setting, **changes)).total - gpu.bytes

    if arguments.max_seq:
        row["max_seq"] = largest_that_fits(lambda tokens: excess(tokens=tokens), SEQUENCE_STEP, LONGEST)
    if arguments.max_batch:
        row["max_batch"] = largest_that_fits(lambda batch: excess(batch=batch), 1, LARGEST)
    return row


def _print_table(arguments: argparse.Namespace, rows: list[dict[str, Any]], gpu: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{arguments.model}: peak of a training step, GiB; {arguments.batch} × {arguments.seq} tokens"
    table = Table(title=title)
    table.add_column("method")
    categories = list(rows[0]["by_category"])
    extra = [key for key in ("fits", "max_seq", "max_batch") if key in rows[0]]
    for name in ["peak", *categories, *extra]:
        table.add_column(name, justify="right")
    table.add_column("where")
    for row in rows:
        sizes = [row["total"], *(row["by_category"][name] for name in categories)]
        shown = [("yes" if row[key] else "no") if key == "fits" else f"{row[key]:,}" for key in extra]
        where = f"{row['phase']} {row['module']}".strip()
        table.add_row(row["method"], *(f"{size / 2**30:.2f}" for size in sizes), *shown, where)
    console = Console()
    console.print(table)
    if gpu is not None and not any(row["fits"] for row in rows):
        least = min(rows, key=lambda row: row["total"])
        console.print(
            f"Nothing fits {gpu.name}: {least['method']} comes nearest and lacks {least['over'] / 2**30:.2f} GiB."
        )
        console.print(_advice(arguments, least, gpu))


def _advice(arguments: argparse.Namespace, row: dict[str, Any], gpu: Any) -> str:
    """The smallest change that makes the method which needs least fit; each is simulated, not guessed."""
    from paca.planning.models import find_config

    config = find_config(arguments.model, arguments.trust_remote_code)
    for words, changes in _changes(arguments, row["method"]):
        changed = argparse.Namespace(**{**vars(arguments), "max_seq": False, "max_batch": False, **changes})
        method = changes.get("method", row["method"])
        peak = _row(config, method, gpu, changed)["total"]
        if peak <= gpu.bytes:
            return f"It fits with {words}: {peak / 2**30:.2f} GiB."
    return "None of checkpointing, one sequence per step, half the tokens or 4-bit weights makes it fit."


def _changes(arguments: argparse.Namespace, method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to try, from the least to the most; each keeps those before it."""
    changes: dict[str, Any] = {}
    words: list[str] = []
    packed = {"paca": "qpaca", "lora": "qlora"}
    for word, change, wanted in (
        ("--checkpointing", {"checkpointing": True}, not arguments.checkpointing),
        ("--batch 1", {"batch": 1}, arguments.batch > 1),
        (f"--seq {arguments.seq // 2}", {"seq": arguments.seq // 2}, arguments.seq > 1),
        (f"--methods {packed.get(method)}", {"method": packed.get(method)}, method in packed),
    ):
        if wanted:
            words.append(word)
            changes = {**changes, **change}
            yield " ".join(words), changes


VERB = Verb(
    "plan", "Will it fit? Peak memory of a training step per method, without a GPU.", EXAMPLE, add_arguments, run
)
