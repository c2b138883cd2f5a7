"""A worker of `paca compare` in the process of the test."""

from paca.workbench.compare import worker


class Inside(worker.InProcessWorker):
    """A process of its own takes seconds to start."""

    def __init__(self, recipe, unrelated=None, gpu=None):
        super().__init__(recipe, unrelated)

    def close(self):
        pass
