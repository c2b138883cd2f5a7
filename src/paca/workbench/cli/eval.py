"""`paca eval MODEL_OR_ADAPTER --tasks …`: MMLU and other tasks of the harness, perplexity, MT-Bench."""

import argparse
import json

from paca.workbench.base.options import add_options, read_options
from paca.workbench.cli.verb import Verb
from paca.workbench.evaluation.request import Request

EXAMPLE = """\
tasks:
  mmlu         5-shot; with --mmlu-data DIR from local files, without a network
  perplexity   on the texts or conversations of --text
  preference   which of two answers has the higher reward, in the rows of --text, and KL from the base model
  mt-bench     answers to two-turn questions; rated by the judge at --judge-url
  any other    a task or group of lm-evaluation-harness, or of your task files in --include DIR

An evaluation that was interrupted is resumed when the command is repeated; a finished one is only shown again.

example:
  $ paca eval outputs/mine --tasks mmlu --mmlu-data mmlu --limit 20
  $ paca eval outputs/mine outputs/other --tasks perplexity --text held-out.jsonl
  $ paca eval outputs/mine --tasks mt-bench --mt-bench mt_bench --judge-url URL/v1 --judge-model NAME
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca eval` takes."""
    parser.usage = "%(prog)s MODEL_OR_ADAPTER [MORE ...] --tasks TASK [TASK ...] [OPTION ...]"
    add_options(parser, Request)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print each result as it comes."""
    from paca.workbench.base.progress import quiet_libraries
    from paca.workbench.evaluation.evaluate import evaluate

    with quiet_libraries():
        for done in evaluate(read_options(arguments, Request)):
            if arguments.json:
                print(json.dumps(done.result), flush=True)
            else:
                print("\n".join([f"{done.name}: {done.file}", *done.lines]), flush=True)
    return 0


SUMMARY = "Score a model or an adapter: MMLU and the harness's tasks, perplexity, MT-Bench."
VERB = Verb("eval", SUMMARY, EXAMPLE, add_arguments, run, extra="eval")
