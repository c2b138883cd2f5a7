"""What a verb of the command `paca` is."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paca.workbench.base.options import first_word


@dataclass(frozen=True)
class Verb:
    """One subcommand.

    Args:
        name: What is typed after `paca`.
        summary: One line for `paca --help`.
        example: A command and what it prints, shown at the end of its help.
        add_arguments: Declares the verb's own arguments.
        run: Does the work and returns the exit status; the place for heavy imports.
        extra: What installs the libraries that it needs: `paca.errors.to_install(extra)`.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    extra: str = "train"


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how a recipe is named and changed; several verbs take that."""
    parser.usage = "%(prog)s RECIPE [key=value ...] [OPTION ...]"
    first_word(
        parser,
        "recipe",
        names_recipe,
        metavar="RECIPE",
        help="a YAML file, or the name of a recipe that comes with paca",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="set a key of the recipe, such as training.max_steps=5",
    )


def names_recipe(word: str) -> bool:
    """Whether a word can be nothing but a recipe: a file's name, or the name of one that comes with paca."""
    from paca.workbench.recipe.recipe import shipped_recipes

    return word.endswith((".yaml", ".yml")) or os.path.isfile(word) or word in shipped_recipes()


def recipe_of(arguments: argparse.Namespace, output: str | None = None) -> Any:
    """Read the recipe that was named, with what was set; a missing file is told before any library is imported."""
    from paca.workbench.recipe.recipe import find_recipe, read_recipe

    return read_recipe(find_recipe(arguments.recipe), arguments.overrides, output, with_files=True)
