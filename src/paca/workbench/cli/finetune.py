"""`paca finetune RECIPE.yaml`: runs one recipe."""

import argparse
import os
import sys

from paca.workbench.base.waiting import expect
from paca.workbench.cli.verb import Verb, add_recipe_arguments, recipe_of

FIRST_RUN = """\
example:
  $ paca finetune smollm2-python-reference
  …
  improved: held-out perplexity 15.69 -> 12.13 (16 of 33 held-out sequences, 4,080 tokens)
  adapter: outputs/smollm2-python-reference/adapter (2,488,320 trained parameters, 1.82% of the model)
  merge: paca export outputs/smollm2-python-reference/adapter --to merged
"""
EXAMPLE = f"""{FIRST_RUN}
  Half the steps at rank 8, written elsewhere:
  $ paca finetune smollm2-python-reference training.max_steps=30 method.r=8 --output outputs/short
"""
# The stages before the first measurement, and their seconds for SmolLM2-135M on two cores.
PREPARATION = {
    "loading libraries": 6.0,
    "reading the data": 2.0,
    "estimating the memory of a step": 5.0,
    "encoding the data": 0.5,
    "loading the model": 14.0,
    "rehearsing the run": 5.0,
}
EXAMINATION = ("estimating the memory of a step", "rehearsing the run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca finetune` takes."""
    add_recipe_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="write to DIR in place of the recipe's output_dir")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an interrupted run from its last checkpoint")
    again.add_argument("--overwrite", action="store_true", help="replace the run that the output folder holds")
    parser.add_argument("--no-doctor", action="store_true", help="begin without examining and rehearsing the run")


def run(arguments: argparse.Namespace) -> int:
    """Run the recipe and print what came of it; 130 after Ctrl-C, 143 after SIGTERM."""
    left_out = EXAMINATION if arguments.no_doctor else ()
    expect({stage: seconds for stage, seconds in PREPARATION.items() if stage not in left_out})
    recipe = recipe_of(arguments, arguments.output)
    from paca.workbench.training.interruptions import StoppedError
    from paca.workbench.training.run import closing_lines, finetune

    try:
        metrics = finetune(
            recipe, resume=arguments.resume, overwrite=arguments.overwrite, doctor=not arguments.no_doctor
        )
    except KeyboardInterrupt:
        print("paca finetune: interrupted; add --resume to continue", file=sys.stderr)
        return 130
    except StoppedError as stopped:
        print(f"paca finetune: stopped by SIGTERM; {stopped} is written, add --resume to continue", file=sys.stderr)
        return 143
    lines = closing_lines(recipe.task, metrics)
    if os.environ.get("RANK", "0") == "0":  # of several processes only one prints
        print("\n".join(lines))
    return 0


VERB = Verb(
    "finetune", "Run a recipe: evaluate, train, evaluate again, save the adapter.", EXAMPLE, add_arguments, run
)
