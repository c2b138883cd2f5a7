"""`paca doctor RECIPE.yaml`: what would go wrong in a run, in seconds."""

import argparse
from pathlib import Path

from paca.workbench.cli.verb import Verb, add_recipe_arguments, recipe_of

EXAMPLE = """\
example:
  $ paca doctor smollm2-python-reference
"""
MARKS = {"fine": "ok", "note": "ok", "warning": "warning", "problem": "PROBLEM"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca doctor` takes."""
    add_recipe_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="in place of the recipe's output_dir")


def run(arguments: argparse.Namespace) -> int:
    """Examine the recipe, and say what was found; 1 if the run would be wasted."""
    recipe = recipe_of(arguments, arguments.output)
    from paca.workbench.base.files import borrowed_folder
    from paca.workbench.base.progress import quiet_libraries
    from paca.workbench.training.doctor import examine
    from paca.workbench.training.run import trainer_of

    with quiet_libraries(), borrowed_folder(Path(recipe.output_dir)) as folder:
        trainer, data = trainer_of(recipe)
        findings = examine(trainer, recipe, folder, data)
    for finding in findings:
        print(f"{MARKS[finding.level]:>7}  {finding.text}")
    return int(any(finding.level == "problem" for finding in findings))


VERB = Verb("doctor", "Find out in seconds what would go wrong in a run.", EXAMPLE, add_arguments, run)
