"""What ends a run before its time: SIGTERM, a full disk, a folder that may not be written to."""

import contextlib
import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from paca.errors import PacaError
from paca.workbench.base.messages import one_line
from paca.workbench.base.processes import summed, world_size
from paca.workbench.training.checkpoints import last_complete

_WRITE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
}  # fmt: skip
# torch and safetensors write through code of their own, which raises no OSError.
_WRITE_PHRASES = ("PytorchStreamWriter", "file write failed", "unexpected pos", "No space left", "File too large")


class StoppedError(Exception):
    """SIGTERM came, and the run has saved where it was."""


class StopOnTerm(TrainerCallback):
    """On SIGTERM, lets the step end, saves a checkpoint and stops: schedulers of clusters give some seconds for it."""

    def __init__(self) -> None:
        self.asked = False
        self._earlier: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen; where the run is in no main thread, nobody can."""
        with contextlib.suppress(ValueError):
            self._earlier = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, all processes at the same step."""
        if world_size() > 1:
            self.asked = summed([float(self.asked)], args.device)[0] > 0
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the signal as it was."""
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextlib.contextmanager
def failed_writes_explained(folder: Path) -> Iterator[None]:
    """Turn what a full disk or a missing permission raises into a PacaError about the run."""
    try:
        yield
    except PacaError:
        raise
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise PacaError(_explained(folder, error)) from error


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _WRITE_ERRORS
    return any(phrase in str(error) for phrase in _WRITE_PHRASES)


def _explained(folder: Path, error: Exception) -> str:
    what = f"The run could not write to {str(folder)!r}: {one_line(error)}."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what} Name a folder that you may write to with --output DIR."
    last = last_complete(folder, discard_later=False)
    if last is None:
        return f"{what} No checkpoint was written yet: make room, and add --resume or --overwrite."
    return f"{what} Its last checkpoint, {last.name}, is whole: make room, and add --resume to continue from there."
