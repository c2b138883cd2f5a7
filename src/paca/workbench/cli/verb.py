"""What a verb of the command `paca` is."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One subcommand.

    Args:
        name: What is typed after `paca`.
        summary: One line for `paca --help`.
        example: A command and what it prints, shown at the end of its help.
        add_arguments: Declares the verb's own arguments.
        run: Does the work and returns the exit status; the place for heavy imports.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
