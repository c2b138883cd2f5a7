"""The stages that the run of every task has: a measurement that survives an interruption, and training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, set_seed

from paca.tuner.distributed import check_ranks
from paca.workbench.base.files import write_json
from paca.workbench.base.processes import on_main, world_size
from paca.workbench.base.progress import say
from paca.workbench.base.waiting import stage
from paca.workbench.data.prepare import TrainingData
from paca.workbench.models.embedded_columns import columns_of_embedded
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.training.checkpoints import ALL_RANKS, STATE
from paca.workbench.training.doctor.findings import NOTE, WARNING
from paca.workbench.training.engines import before_training, load_only, prepared_by_parameters, shards
from paca.workbench.training.interruptions import StopOnTerm, StoppedError


def measured_once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, or read from the file at `path` what was measured before the interruption."""
    stage("measuring on the held-out data")
    if not on_main(path.exists):
        fresh = measure()
        on_main(lambda: write_json(path, fresh))
    measured: dict[str, Any] = on_main(lambda: json.loads(path.read_text(encoding="utf-8")))
    return measured


def examined(trainer: Any, recipe: Recipe, folder: Path, data: TrainingData | None = None) -> None:
    """Examine a run before its first step: say what the user should know; a PacaError if it would be wasted."""
    from paca.workbench.training.doctor import examine, refuse_problems
    from paca.workbench.training.doctor.batch_size import keep_for_resuming

    wanted = trainer.args.per_device_train_batch_size
    findings = examine(trainer, recipe, folder, data)
    for finding in findings:
        if finding.level in (NOTE, WARNING):
            say(f"{finding.level}: {finding.text}")
    refuse_problems(findings)
    if trainer.args.per_device_train_batch_size < wanted:
        keep_for_resuming(trainer, folder)


def measured_first(trainer: Any, path: Path, measure: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Take a measurement before training: now, or where the model is sharded, as soon as it is.

    Returns a function that gives the measurement, to be called after training.
    """
    if not shards(trainer):
        measured = measured_once(path, measure)
        return lambda: measured

    def undisturbed() -> None:
        with torch.random.fork_rng():
            measured_once(path, measure)
            trainer.model.train()

    before_training(trainer, undisturbed)
    return lambda: measured_once(path, measure)


def train(trainer: Any, seed: int, checkpoint: Path | None) -> None:
    """Train to the end, from a complete checkpoint of this trainer's engine if there is one.

    `seed` is that of all random numbers from here on, but a checkpoint has its own state. A StoppedError if SIGTERM
    came; a checkpoint is written then.
    """
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if state.global_step >= state.max_steps or stopped_early(state):
            # The run was killed after its last step. Trainer would take one step more, each time it is resumed.
            last = best_checkpoint(state, checkpoint) if trainer.args.load_best_model_at_end else checkpoint
            load_only(trainer, last)
            trainer.state = state
            return
    stage("preparing to train")
    choose_connections(trainer, seed, checkpoint is not None)
    check_ranks(trainer.model)
    if world_size() > 1:
        trainer.add_callback(_AllRanks())
    # The evaluation drew random numbers, or was skipped by a resumed run.
    set_seed(seed)
    term = StopOnTerm()
    trainer.add_callback(term)
    with prepared_by_parameters(trainer):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if term.asked:
        raise StoppedError(f"checkpoint-{trainer.state.global_step}")


class _AllRanks(TrainerCallback):
    """Marks a checkpoint when every rank has written its part of it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.distributed.barrier()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        on_main(lambda: write_json(folder / ALL_RANKS, world_size()))


def stopped_early(state: Any) -> bool:
    """Whether early stopping has ended a run: no evaluation in its patience was better than the best."""
    saved = state.stateful_callbacks.get("EarlyStoppingCallback")
    if not isinstance(saved, dict):
        return False
    waited: int = saved["attributes"]["early_stopping_patience_counter"]
    return waited >= saved["args"]["early_stopping_patience"]


def best_checkpoint(state: Any, last: Path) -> Path:
    """Find the checkpoint with the lowest held-out loss, or the last where no evaluation came before it.

    The run's folder may have been moved since the state was written.
    """
    named = last.parent / Path(state.best_model_checkpoint or last).name
    return named if named.is_dir() else last


def choose_connections(trainer: Any, seed: int, resumes: bool = False) -> None:
    """Let every adapter whose strategy needs data choose its connections, on the first batches of the training data.

    With `resumes`, a checkpoint will bring the connections: only those that move are measured then.
    """
    from paca.tuner.select_connections import select_connections

    configs = getattr(trainer.model, "peft_config", {})
    moving = {name for name, config in configs.items() if getattr(config, "reselect_every", None)}
    if moving:
        from paca.tuner.reselect import ReselectCallback

        trainer.add_callback(ReselectCallback())
    waiting = set(getattr(trainer.model.base_model, "unselected", ()))
    for name in sorted(waiting & moving if resumes else waiting):
        batches = selection_batches(trainer, seed)
        with columns_of_embedded(configs[name]):
            select_connections(trainer.model, batches, adapter_name=name, progress=not trainer.args.disable_tqdm)


def selection_batches(trainer: Any, seed: int) -> Any:
    """The training data as a strategy that needs data sees it: the same batches whenever they are asked for."""
    set_seed(seed)
    return trainer.get_train_dataloader()
