"""`paca recipes`: what comes with the package, and `paca recipes show NAME`."""

import argparse
import sys
import textwrap

from paca.errors import PacaError
from paca.workbench.cli.verb import Verb

EXAMPLE = """\
example:
  $ paca recipes show smollm2-python-reference > mine.yaml
  $ paca finetune mine.yaml training.max_steps=30
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca recipes` takes."""
    parser.usage = "%(prog)s [show NAME]"
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list", help="list (default), or show")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the recipe to show")


def run(arguments: argparse.Namespace) -> int:
    """List the recipes with a line each, or print one."""
    from paca.workbench.recipe.recipe import find_recipe, shipped_recipes

    if arguments.action == "show":
        if arguments.name is None:
            raise PacaError(f"Name the recipe: paca recipes show NAME, one of {', '.join(sorted(shipped_recipes()))}.")
        sys.stdout.write(find_recipe(arguments.name).read_text(encoding="utf-8"))
        return 0
    recipes = shipped_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in sorted(recipes.items()):
        print(f"{name:{width}}  {first_sentence(path.read_text(encoding='utf-8'))}")
    return 0


def first_sentence(text: str, width: int = 90) -> str:
    """Take the first sentence of the comment that a recipe opens with, shortened to `width`; empty without one."""
    comment = []
    for line in text.splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        comment.append(line.strip("# "))
    sentence = " ".join(comment).split(". ")[0].rstrip(".")
    return textwrap.shorten(sentence, width, placeholder=" …")


VERB = Verb("recipes", "List the recipes that come with paca, or show one.", EXAMPLE, add_arguments, run)
