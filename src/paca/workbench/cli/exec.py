"""`paca exec -- COMMAND`: another tool's command line, in which PEFT knows PaCA.

PEFT has no plug-in hook, so a tool that only imports PEFT would refuse an adapter whose `peft_type` is `PACA`.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import paca
from paca.errors import PacaError
from paca.workbench.base.waiting import still
from paca.workbench.cli.verb import Verb

EXAMPLE = """\
example:
  $ paca exec -- python -c "from peft import PeftType; print(PeftType.PACA.value)"
  PACA
  $ paca exec -- lm_eval --model hf --model_args pretrained=MODEL,peft=outputs/mine/adapter --tasks mmlu
  $ paca exec -- trl sft --config mine.yaml

Every Python process that the command starts is reached, those of torchrun and accelerate among them, if it finds paca.
Without COMMAND's own isolation: `python -I` and `python -S` read no start-up module.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca exec` takes."""
    parser.usage = "%(prog)s -- COMMAND [WORD ...]"
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="after --: what to run")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; its exit status, or 128 + n if signal n ended it."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise PacaError("There is no command to run. Type: paca exec -- COMMAND, such as paca exec -- lm_eval --help")
    program = shutil.which(command[0])
    if program is None:
        raise PacaError(
            f"There is no program {command[0]!r} on the PATH; a script is run as: paca exec -- python FILE"
        )
    with still():  # the terminal is the command's
        status = subprocess.call([program, *command[1:]], env=environment(os.environ))
    return status if status >= 0 else 128 - status


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Make an environment in which Python imports paca when it starts.

    It has two more folders on PYTHONPATH: the start-up module's first, this package's last.
    """
    package = Path(paca.__file__).resolve().parent
    parts = [
        str(package / "workbench" / "cli" / "startup"),
        *filter(None, [given.get("PYTHONPATH")]),
        str(package.parent),
    ]
    return {**given, "PYTHONPATH": os.pathsep.join(parts)}


VERB = Verb("exec", "Run another tool's command line with PaCA registered in PEFT.", EXAMPLE, add_arguments, run)
