"""The command `paca`: finds the verb, and turns a user's mistake into a message and exit status 2."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import paca
from paca.errors import PacaError, to_install
from paca.workbench.base.asides import hush_imports
from paca.workbench.base.messages import one_line, suggestion
from paca.workbench.base.options import find_first_word
from paca.workbench.base.waiting import signs_of_life
from paca.workbench.cli import chat, compare, data, doctor, export, finetune, plan, recipes, select
from paca.workbench.cli import eval as eval_verb
from paca.workbench.cli import exec as exec_verb
from paca.workbench.cli.streams import lasting_streams
from paca.workbench.cli.verb import Verb

VERBS: list[Verb] = [
    finetune.VERB,
    doctor.VERB,
    data.VERB,
    compare.VERB,
    eval_verb.VERB,
    chat.VERB,
    export.VERB,
    plan.VERB,
    select.VERB,
    exec_verb.VERB,
    recipes.VERB,
]

EXAMPLE = f"{finetune.FIRST_RUN}\n`paca VERB --help` explains a verb.\n"
INTERRUPTED = 130  # 128 and the signal's number, as a shell says it
VISION_PACKAGES = ("PIL", "timm", "torchvision")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on the words after `paca`, by default those of the process.

    Returns 0 for success, 1 if what it printed is lost on a full disk, 2 for a mistake in what was asked or a missing
    library, 130 after Ctrl-C. A reader that has gone is no failure.
    """
    with lasting_streams() as output, signs_of_life(output, sys.stderr):
        try:
            status = _run(argv)
        except KeyboardInterrupt:
            print("paca: interrupted", file=sys.stderr)
            return INTERRUPTED
        output.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):
            print(f"paca: the output can't be written: {one_line(output.error)}", file=sys.stderr)
            return status or 1
    return status


def _run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    hush_imports()
    try:
        return int(arguments.run(arguments))
    except PacaError as error:
        status, message = 2, str(error)
    except ModuleNotFoundError as error:
        extra = "vision" if error.name in VISION_PACKAGES else arguments.extra
        status, message = 2, f"The package {error.name!r} is missing. Type: {to_install(extra)}"
    except KeyboardInterrupt:
        status, message = INTERRUPTED, "interrupted"
    print(f"paca {arguments.verb}: {message}", file=sys.stderr)
    return status


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the words after `paca`; overrides of a recipe's keys may stand after options as well.

    Exits with status 2 where something is not understood.
    """
    arguments, others = build_parser().parse_known_args(argv)
    overrides = [word for word in others if "=" in word and not word.startswith("-")]
    later = [*overrides, *getattr(arguments, "later_overrides", [])]
    if len(overrides) < len(others) or (later and not hasattr(arguments, "overrides")):
        unknown = [word for word in [*others, *later] if word not in overrides] or later
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if later:
        arguments.overrides = [*arguments.overrides, *later]
    find_first_word(arguments)
    return arguments


class Parser(argparse.ArgumentParser):
    """A parser whose errors name what is meant."""

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message, with the near word of those that there are."""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if choice is not None:
            message += suggestion(choice[1], re.findall(r"[\w-]+", choice[2]))
        elif unknown is not None:
            message += suggestion(unknown[1], re.findall(r"--[a-z][\w-]*", self.format_help()))
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser with all verbs."""
    parser = Parser(
        prog="paca",
        description="Fine-tune a few input columns of pretrained weights (Partial Connection Adaptation).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"paca {paca.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        own = verbs.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.summary,
            epilog=verb.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(own)
        own.set_defaults(run=verb.run, extra=verb.extra, parser=own)
    return parser
