"""Runs commands in forked processes, each killed with SIGKILL, again and again, then once to the end.

    python -m tests.workbench.evaluation.kill_driver PLANS

PLANS is JSON: a list of objects with `argv`, the words after `paca`; `kills`, a number of seconds each; and `folder`,
where results appear. What each process did, and whether all that lay there afterwards was whole, is printed as JSON.

A process of its own does this, since forking is safe only where no thread has been started; the libraries are imported
once, before the first fork.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval.evaluator  # noqa: F401 - imported once for all
import openai  # noqa: F401
import torch
import trl  # noqa: F401

import paca.workbench.evaluation.evaluate
import paca.workbench.evaluation.harness_model
import paca.workbench.export.verified  # noqa: F401
from paca.workbench.cli.main import main

torch.set_num_threads(1)


def attempt(argv: list[str], kill: float | None) -> int:
    """Run a command in a process of its own, kill it in time, and return what ended it."""
    child = os.fork()
    if child == 0:
        os._exit(main(argv))
    deadline = time.monotonic() + (120 if kill is None else kill)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)


def all_whole(folder: Path) -> bool:
    """Whether everything below a folder that bears its final name is complete."""
    for path in folder.rglob("result.json"):
        if "versions" not in json.loads(path.read_text()):
            return False
    for path in folder.rglob("adapter_model.safetensors"):
        place = path.parent
        if place.name == "lora":
            certificate = json.loads((place / "certificate.json").read_text())
            sizes = {name: (place / name).stat().st_size for name in certificate["files"]}
            if sizes != certificate["files"]:
                return False
    return True


def work_through(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Kill a command as planned, then let it finish."""
    log = []
    for kill in [*plan["kills"], None]:
        status = attempt(plan["argv"], kill)
        log.append({"kill": kill, "status": status, "whole": all_whole(Path(plan["folder"]))})
    return log


if __name__ == "__main__":
    print(json.dumps([work_through(plan) for plan in json.loads(sys.argv[1])]))
