"""`paca finetune RECIPE.yaml`: runs one recipe."""

import argparse
import functools
import os
import sys
from collections.abc import Callable

from paca.workbench.cli.verb import Verb

Run = Callable[[argparse.Namespace], int]

EXAMPLE = """\
example:
  $ paca finetune smollm2-python-reference
  …
  improved: held-out perplexity 15.69 -> 12.13 (16 of 33 held-out sequences, 4,080 tokens)
  adapter: outputs/smollm2-python-reference/adapter (2,488,320 trained parameters, 1.82% of the model)
  merge: paca export outputs/smollm2-python-reference/adapter --to merged

  Half the steps at rank 8, written elsewhere:
  $ paca finetune smollm2-python-reference training.max_steps=30 method.r=8 --output outputs/short
"""


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how a recipe is named and changed; other verbs take the same.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that comes with paca")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="set a key of the recipe, such as training.max_steps=5"
    )


def needs_training_packages(run: Run) -> Run:
    """Have a verb say what to install where a library is missing.

    Args:
        run: Does the verb's work.

    Returns:
        The same, with that message.
    """

    @functools.wraps(run)
    def with_message(arguments: argparse.Namespace) -> int:
        from paca.errors import PacaError

        try:
            return run(arguments)
        except ModuleNotFoundError as error:
            extra = "vision" if error.name in ("PIL", "timm", "torchvision") else "train"
            raise PacaError(f"The package {error.name!r} is missing. Type: pip install 'paca[{extra}]'") from error

    return with_message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca finetune` takes.

    Args:
        parser: The verb's parser.
    """
    add_recipe_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="write to DIR in place of the recipe's output_dir")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the last checkpoint of an interrupted run")
    again.add_argument("--overwrite", action="store_true", help="replace the run that the output folder holds")
    parser.add_argument("--no-doctor", action="store_true", help="begin without examining and rehearsing the run")


@needs_training_packages
def run(arguments: argparse.Namespace) -> int:
    """Run the recipe and print what came of it.

    Args:
        arguments: What was typed.

    Returns:
        0, 130 after Ctrl-C, or 143 after SIGTERM.

    Raises:
        PacaError: If something was asked that cannot be done.
    """
    from paca.workbench.recipe.recipe import find_recipe, read_recipe
    from paca.workbench.training.interruptions import StoppedError
    from paca.workbench.training.run import closing_lines, finetune

    recipe = read_recipe(find_recipe(arguments.recipe), arguments.overrides, arguments.output)
    try:
        metrics = finetune(
            recipe, resume=arguments.resume, overwrite=arguments.overwrite, doctor=not arguments.no_doctor
        )
    except KeyboardInterrupt:
        print("paca finetune: interrupted; add --resume to go on", file=sys.stderr)
        return 130
    except StoppedError as stopped:
        print(f"paca finetune: stopped by SIGTERM; {stopped} is written, add --resume to go on", file=sys.stderr)
        return 143
    lines = closing_lines(recipe.task, metrics)
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
        print("\n".join(lines))
    return 0


VERB = Verb(
    "finetune", "Run a recipe: evaluate, train, evaluate again, save the adapter.", EXAMPLE, add_arguments, run
)
