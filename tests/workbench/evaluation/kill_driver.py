"""Runs commands in forked processes, each killed with SIGKILL, again and again, then once to the end.

    python -m tests.workbench.evaluation.kill_driver PLANS

PLANS is JSON: a list of objects with `calm` and `killed`, the words after `paca` of a run that is left in peace and of
the one that is killed; `kills`, the moments as shares of the first one's time; and `folder`, where the second one's
results appear. What each process did, and whether all that lay there afterwards was whole, is printed as JSON.

A process of its own does this, since forking is safe only where no thread has been started; the libraries are imported
once, before the first fork.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval.evaluator  # noqa: F401 - imported once for all
import openai  # noqa: F401
import torch
import trl  # noqa: F401
from tests.forks import fork_and_kill

import paca.workbench.evaluation.evaluate
import paca.workbench.evaluation.harness_model
import paca.workbench.export.verified  # noqa: F401
from paca.workbench.cli.main import main

torch.set_num_threads(1)


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
    """Run a command in peace, then kill it as planned, then let it finish."""
    started = time.perf_counter()
    if fork_and_kill(lambda: main(plan["calm"]), None) != 0:
        raise RuntimeError(f"paca {' '.join(plan['calm'])} failed")
    length = time.perf_counter() - started
    log = []
    for kill in [*(share * length for share in plan["kills"]), None]:
        status = fork_and_kill(lambda: main(plan["killed"]), kill)
        log.append({"kill": kill, "status": status, "whole": all_whole(Path(plan["folder"]))})
    return log


if __name__ == "__main__":
    print(json.dumps([work_through(plan) for plan in json.loads(sys.argv[1])]))
