"""`paca data RECIPE.yaml`: the training data of a recipe, as the model sees it."""

import argparse
import sys

from paca.errors import PacaError
from paca.workbench.cli.verb import Verb, add_recipe_arguments, recipe_of

EXAMPLE = """\
example:
  $ paca data smollm2-instruct data.path=../data
  $ paca data mine.yaml --rows 1

  What carries loss is green, or in ⟦brackets⟧ where the output is no terminal.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca data` takes."""
    add_recipe_arguments(parser)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="sequences to show (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Show the first sequences, then lengths and counts."""
    recipe = recipe_of(arguments)
    from rich.console import Console

    from paca.workbench.data.preference import ANSWER_NAMES, sequences
    from paca.workbench.data.preview import histogram, render, summary
    from paca.workbench.recipe.tasks import IMAGES
    from paca.workbench.training.run import encoded_data

    if recipe.task == IMAGES:
        raise PacaError(f"paca data shows text; the task of this recipe is {recipe.task}.")
    data, tokenizer, limit = encoded_data(recipe)
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    for number in range(min(arguments.rows, len(data.train))):
        row = data.train[number]
        names = [name for name in ANSWER_NAMES if name in row] or ["sequence"]
        for name, sequence in zip(names, sequences([row], limit), strict=True):
            liked = f", label {row['label']}" if "label" in row else ""
            title = f"{name.removesuffix('_ids')} {number + 1} of {len(data.train):,}{liked}"
            console.rule(f"{title}, {len(sequence['input_ids']):,} tokens")
            console.print(render(sequence, tokenizer, colour=console.color_system is not None))
    console.rule("tokens per row")
    print("\n".join([*histogram(data.counted.lengths, limit), *summary(data, tokenizer, limit)]))
    return 0


VERB = Verb("data", "Show a recipe's training data as the model sees it.", EXAMPLE, add_arguments, run)
