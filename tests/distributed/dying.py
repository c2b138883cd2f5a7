"""`paca` of which one worker kills itself once: what `python -m paca.workbench.cli` runs, and a callback."""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from paca.workbench.training import text as finetune


class Kill(TrainerCallback):
    """Kills this process in a step: before it, in the middle of it, after it, or while its checkpoint is written."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def _die(self, state, moment):
        if state.global_step >= self.step and moment == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, args, state, control, **kwargs):
        self._die(state, "before")

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._die(state, "within")

    def on_step_end(self, args, state, control, **kwargs):
        self._die(state, "after")

    def on_save(self, args, state, control, **kwargs):
        self._die(state, "saving")


def kill_in(step, moment):
    """Have the trainer that `finetune` makes next die."""
    make = finetune.make_trainer

    def making(*arguments):
        trainer = make(*arguments)
        trainer.add_callback(Kill(step, moment))
        return trainer

    finetune.make_trainer = making


if __name__ == "__main__":
    from paca.workbench.cli.main import main

    mark = Path(os.environ["DIED"])
    if os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        kill_in(4, "within")
    sys.exit(main())
