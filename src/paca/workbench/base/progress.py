"""What a run shows while it runs: one bar with the loss next to it, and none of the libraries' asides."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback

from paca.workbench.base.processes import rank

# What other libraries say here and the user can do nothing about.
ASIDES = (
    "`is_gradient_checkpointing` is deprecated",  # TRL asks by the old name
    "Could not find a config file in",  # PEFT looks for an embedded model's config; its vocabulary is never changed
)


class LossBar(ProgressCallback):
    """Trainer's progress bar, with the loss next to it in place of whole logs between its lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the newest losses."""
        shown = {key: f"{float(value):.3f}" for key, value in (logs or {}).items() if key in ("loss", "eval_loss")}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)


def show_losses(trainer: Any) -> None:
    """Put the losses next to a trainer's progress bar, if it has one."""
    if trainer.pop_callback(ProgressCallback) is not None:  # absent under training.disable_tqdm
        trainer.add_callback(LossBar())


def say(text: str) -> None:
    """Tell the user one line on standard error, above any bar; only rank 0 prints."""
    if rank() == 0:
        tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence known asides, and the bars of data preparation that takes no time, inside a `with` block.

    The bars of loading go where nobody sees them move: into a file or a pipe.
    """
    import datasets
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for message in ASIDES:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
