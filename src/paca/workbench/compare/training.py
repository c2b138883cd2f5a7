"""Units that train: a short run that tries a learning rate, and a full run with its curve."""

import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from paca.workbench.compare.merging import after_training
from paca.workbench.compare.units import Unit, Watch
from paca.workbench.compare.workload import Workload
from paca.workbench.training.held_out import evaluate
from paca.workbench.training.report import count_parameters, loss_points
from paca.workbench.training.stages import train


class StepCounter(TrainerCallback):
    """Tells `watch` how far a run is."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell."""
        self.watch(state.global_step, state.max_steps, "training")


class CurveRecorder(StepCounter):
    """Measures the held-out loss `points` times after the first step, the last at the end.

    Its clock stands still meanwhile.
    """

    def __init__(self, trainer: Any, points: int, watch: Watch) -> None:
        super().__init__(watch)
        self.trainer, self.points = trainer, points
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._due: set[int] = set()
        self._started = 0.0

    def record(self, step: int) -> None:
        """Add a point to the curve."""
        found = evaluate(self.trainer, accuracy=True)
        self.curve.append({"step": step, "seconds": self.seconds, **asdict(found)})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find out at which steps to measure, and measure before the first."""
        self._due = {math.ceil(state.max_steps * point / self.points) for point in range(1, self.points + 1)}
        self.record(0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the clock run."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, and measure where it is due."""
        if self.trainer.args.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started
        super().on_step_end(args, state, control)
        if state.global_step in self._due:
            self.record(state.global_step)


def try_rate(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Train a few steps at one learning rate, and measure the loss on a slice of the training data that was left out.

    The unit has `seed`, `rate` and `steps`; the result `loss`, None where training diverged.
    """
    kept, slice_ = workload.tuning
    changes = {"learning_rate": unit.values["rate"], "max_steps": unit.values["steps"]}
    trainer = workload.trainer(unit.entry, unit.values["seed"], changes, kept)
    trainer.add_callback(StepCounter(watch))
    train(trainer, unit.values["seed"], None)
    loss = evaluate(trainer, slice_).loss
    return {"loss": loss if math.isfinite(loss) else None}


def full_run(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Train as the recipe says, and measure what came of it: the curve, what was forgotten, sizes, merging.

    The unit has `seed`, `rate` and `points`, the number of measurements on the way; and `pace` where the method is
    to take that many times the recipe's steps, over which the schedule is then spread.
    """
    entry, seed = unit.entry, unit.values["seed"]
    changes = {} if unit.values["rate"] is None else {"learning_rate": unit.values["rate"]}
    changes |= paced(workload.arguments(seed), unit.values.get("pace", 1.0))
    trainer = workload.trainer(entry, seed, changes)
    recorder = CurveRecorder(trainer, unit.values["points"], watch)
    unrelated = {"before": evaluate(trainer, workload.unrelated).loss}
    if entry.method.trains:
        trainer.add_callback(recorder)
        train(trainer, seed, None)
    else:
        recorder.record(0)
    unrelated["after"] = evaluate(trainer, workload.unrelated).loss
    parameters = count_parameters(trainer.model)
    watch(1, 1, "merging")
    return {
        "curve": recorder.curve,
        "training_loss": loss_points(trainer.state.log_history),
        "unrelated": unrelated,
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "train_seconds": recorder.seconds,
        "trained_parameters": parameters.trained,
        "total_parameters": parameters.total,
        "file_bytes": file_bytes(trainer.model),
        "peft_config": peft_config(trainer.model),
        **after_training(trainer, workload.data.held_out),
    }


def paced(arguments: Any, pace: float) -> dict[str, Any]:
    """Say how long `pace` times a run is, in the terms in which its arguments say how long it is."""
    if pace == 1:
        return {}
    if arguments.max_steps > 0:
        return {"max_steps": max(1, round(pace * arguments.max_steps))}
    return {"num_train_epochs": pace * arguments.num_train_epochs}


def file_bytes(model: Any) -> int:
    """Bytes on disk of what a method has trained: an adapter's file, or all trained weights."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def peft_config(model: Any) -> dict[str, Any] | None:
    """The adapter's configuration as JSON can write it; None where there is no adapter."""
    config = getattr(model, "peft_config", {}).get("default")
    if config is None:
        return None
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return {key: getattr(value, "value", value) for key, value in values.items()}
