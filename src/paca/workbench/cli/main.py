"""The command `paca`: finds the verb, and turns a user's mistake into a message and exit status 2."""

import argparse
import sys
from collections.abc import Sequence

import paca
from paca.errors import PacaError
from paca.workbench.cli import chat, compare, data, doctor, export, finetune, plan, recipes, select
from paca.workbench.cli import eval as eval_verb
from paca.workbench.cli import exec as exec_verb
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

EXAMPLE = """\
example:
  $ paca finetune smollm2-python-reference
  …
  improved: held-out perplexity 15.69 -> 12.13 (16 of 33 held-out sequences, 4,080 tokens)
  adapter: outputs/smollm2-python-reference/adapter (2,488,320 trained parameters, 1.82% of the model)
  merge: paca export outputs/smollm2-python-reference/adapter --to merged

`paca VERB --help` explains a verb.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words after `paca`; those of the process when omitted.

    Returns:
        0 for success, 2 for a mistake in what was asked, 130 after Ctrl-C.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except PacaError as error:
        print(f"paca {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"paca {arguments.verb}: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Make the parser with all verbs."""
    parser = argparse.ArgumentParser(
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
        own.set_defaults(run=verb.run)
    return parser
