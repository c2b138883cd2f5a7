"""Says what memory a run is expected to need, before anything is loaded."""

import torch

from paca.workbench.base.messages import one_line
from paca.workbench.base.processes import world_size
from paca.workbench.base.progress import say
from paca.workbench.base.waiting import stage
from paca.workbench.recipe.recipe import Recipe


def say_memory(recipe: Recipe) -> None:
    """Say the planner's estimate of a training step's peak in one line; of one process only.

    Where it can't be estimated, that is said, and the run goes on: the rehearsal before the first step measures.
    """
    if world_size() > 1:  # what a rank holds depends on the engine
        return
    stage("estimating the memory of a step")
    try:
        from paca.workbench.planning.recipes import estimate

        with torch.random.fork_rng(devices=[]):
            said = estimate(recipe).line()
    except Exception as error:  # an aid before a run must not be what ends it, whatever it meets
        said = f"the memory of a step was not estimated: {one_line(error)}"
    say(f"note: {said}")
