"""What the benchmarks share: how their command lines are read, how they show how far they are, and what they write."""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from paca import PacaError
from paca.profiling.environment import machine
from paca.profiling.environment import versions as installed_versions
from paca.workbench.base.files import write_json
from paca.workbench.base.markdown import table_lines
from paca.workbench.base.options import positive

_VERSIONS = ("torch", "transformers", "peft", "paca")


class Described(Protocol):
    """What a command line offers by name, such as a method."""

    @property
    def name(self) -> str:
        """What is typed."""

    @property
    def description(self) -> str:
        """What it is, in one line."""


def make_parser(file: str, text: str | None, **offered: Mapping[str, Described]) -> argparse.ArgumentParser:
    """Make a parser whose help is the docstring of a script.

    Args:
        file: The script's `__file__`.
        text: Its docstring.
        **offered: What its options choose from, listed below them.

    Returns:
        The parser, without options.
    """
    lists = [
        "\n".join([f"{title}:", *(f"  {each.name:<18} {each.description}" for each in those.values())])
        for title, those in offered.items()
    ]
    return argparse.ArgumentParser(
        prog=f"python benchmarks/{Path(file).name}",
        description=text,
        epilog="\n\n".join(lists),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_numbers(parser: argparse.ArgumentParser, **numbers: tuple[int, str]) -> None:
    """Add options that take a whole number above zero.

    Args:
        parser: Is given the options.
        **numbers: By name, with underscores in place of hyphens, the default and what the help says before it.
    """
    for name, (default, text) in numbers.items():
        help_text = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, default=default, help=help_text)


def add_threads_and_json(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the two options that `benchmark` sees to."""
    parser.add_argument("--threads", type=positive, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file as well")
    return parser


def benchmark(
    build_parser: Callable[[], argparse.ArgumentParser],
) -> Callable[[Callable[[argparse.Namespace], Any]], Callable[[Sequence[str] | None], int]]:
    """Make the `main` of a script out of the function that measures.

    `main` takes the command line's words and returns the exit status. It sets torch's threads, has transformers say
    nothing, and writes what the function returns to the file that `--json` names.

    Args:
        build_parser: Makes the parser.

    Returns:
        A decorator of a function that takes the parsed arguments; it may return None if it writes its results itself.
    """

    def decorate(measure: Callable[[argparse.Namespace], Any]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(measure)
        def main(words: Sequence[str] | None = None) -> int:
            from transformers.utils import logging

            parser = build_parser()
            arguments = parser.parse_args(words)
            if getattr(arguments, "threads", None):
                torch.set_num_threads(arguments.threads)
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            try:
                result = measure(arguments)
            except PacaError as error:
                parser.error(str(error))
            if result is not None:
                write_results(arguments.json, result)
            return 0

        return main

    return decorate


def read_results(file: Path | None) -> dict[str, Any]:
    """Read what a benchmark that was stopped has written; empty where there is nothing."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}
    return found


def write_results(file: Path | None, results: Any) -> None:
    """Replace a file by results in one step; nothing to do without a file."""
    if file is not None:
        write_json(file, results)


def print_table(columns: Sequence[str], rows: Iterable[Iterable[str]], text: Collection[str] = ()) -> None:
    """Print a Markdown table as `paca.workbench.base.markdown.table` writes it, each row once it has been measured."""
    for line in table_lines(columns, rows, text):
        print(line, flush=True)


def progress(text: str) -> None:
    """Replace the line of progress on standard error; an empty text ends it."""
    print(f"\r{text:<70}", end="\n" if not text else "", file=sys.stderr, flush=True)


def finetuned(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Run a recipe as `paca finetune` does, in a folder that is removed afterwards.

    Args:
        name: A recipe's name, or its file.
        settings: Keys that are set in it, as on the command line.

    Returns:
        What metrics.json holds.
    """
    from paca.workbench.recipe.recipe import find_recipe, read_recipe
    from paca.workbench.training.run import finetune

    with tempfile.TemporaryDirectory() as folder:
        return finetune(read_recipe(find_recipe(name), [*settings, "training.disable_tqdm=true"], f"{folder}/run"))


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are measured."""
    return installed_versions(_VERSIONS)


def surroundings(device: torch.device | None = None) -> dict[str, Any]:
    """What a result depends on besides the code: `machine`, by what the steps ran on, and `versions`."""
    return {"machine": machine(device or torch.device("cpu")), "versions": versions()}


def describe(result: Mapping[str, Any]) -> str:
    """One line that names the machine and the versions of a result."""
    where = result["machine"]
    named = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    processor = f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, load {where['load_average']:.1f}"
    return f"{processor}, {where['device']}; {named}"
