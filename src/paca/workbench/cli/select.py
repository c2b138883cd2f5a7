"""`paca select RECIPE.yaml`: runs selection strategies alone, and shows which connections they choose."""

import argparse
import itertools
import shlex
from pathlib import Path

from paca.workbench.base.options import several
from paca.workbench.cli.verb import Verb, add_recipe_arguments, recipe_of

EXAMPLE = """\
example:
  $ paca select smollm2-python-reference --strategies random weight
  random: outputs/smollm2-python-reference-selection/random.json (3,360 connections in 210 layers)
  weight: outputs/smollm2-python-reference-selection/weight.json (3,360 connections in 210 layers)
  random and weight: 2.6% in common, 2.5% by chance
  heat map: outputs/smollm2-python-reference-selection/selection.png
  train these: paca finetune smollm2-python-reference … method.selection_indices=…/weight.json …

The last line is whole: it trains the last strategy's connections at a learning rate that suits them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca select` takes."""
    add_recipe_arguments(parser)
    several(parser, "--strategies", "NAME", "in place of the recipe's own")
    parser.add_argument("--output", metavar="DIR", help="write there; to the recipe's output_dir-selection if omitted")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier selection")


def run(arguments: argparse.Namespace) -> int:
    """Select, and print what was chosen and where it lies."""
    recipe = recipe_of(arguments)
    from paca.tuner.selection.overlap import overlap, overlap_by_chance
    from paca.workbench.training.selecting import select, training_settings

    folder = Path(arguments.output or f"{recipe.output_dir}-selection")
    done = select(recipe, arguments.strategies, folder, arguments.overwrite)
    for name, chosen in done.chosen.items():
        connections = sum(len(indices) for indices in chosen.values())
        print(f"{name}: {done.files[name]} ({connections:,} connections in {len(chosen)} layers)")
    for one, other in itertools.combinations(done.chosen, 2):
        share = overlap(done.chosen[one], done.chosen[other])
        chance = overlap_by_chance(done.chosen[one], done.sizes)
        print(f"{one} and {other}: {share:.1%} in common, {chance:.1%} by chance")
    print(f"heat map: {done.picture}")
    name, file = list(done.files.items())[-1]
    settings = training_settings(recipe, name, file)
    kept = [override for override in arguments.overrides if override.partition("=")[0] not in settings]
    words = [arguments.recipe, *kept, *(f"{key}={value}" for key, value in settings.items())]
    print(f"train these: paca finetune {shlex.join(words)}")
    return 0


VERB = Verb("select", "Run selection strategies alone: indices, heat map, overlap.", EXAMPLE, add_arguments, run)
