"""Runs that end before their time leave something that can be gone on from."""

import os
import resource
import signal

import pytest
import torch
import trl
from tests.workbench.tiny import write_recipe

from paca import PacaError
from paca.workbench.cli.main import main
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.interruptions import StoppedError
from paca.workbench.training.run import finetune


@pytest.fixture
def path(content, tmp_path):
    content["training"].update(max_steps=6, save_steps=2)
    return write_recipe(tmp_path / "recipe.yaml", content)


def at_step(monkeypatch, step, act):
    """Have something happen as the `step`-th training step of this process begins."""
    original, count = trl.SFTTrainer.training_step, 0

    def training_step(*args, **kwargs):
        nonlocal count
        count += 1
        if count == step:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", training_step)


def adapter(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def undisturbed(path, tmp_path):
    finetune(read_recipe(path, output_dir=str(tmp_path / "undisturbed")))
    return adapter(tmp_path / "undisturbed")


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(path, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError, match="checkpoint-3"):
            finetune(read_recipe(path))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not (tmp_path / "run" / "metrics.json").exists()
    finetune(read_recipe(path), resume=True)
    assert adapter(tmp_path / "run") == undisturbed(path, tmp_path)


def test_the_command_says_that_it_was_stopped(path, capsys, monkeypatch):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["finetune", str(path)]) == 143
    said = "paca finetune: stopped by SIGTERM; checkpoint-1 is written, add --resume to continue"
    assert said in capsys.readouterr().err


def limit_files(size):
    """Let this process write no file longer than `size`: as on a disk that is full, but for real and for any user."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_a_full_disk_leaves_the_last_checkpoint(path, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: limit_files(1000))
        try:
            with pytest.raises(PacaError) as caught:
                finetune(read_recipe(path), doctor=False)
        finally:
            limit_files(None)
    message = str(caught.value)
    assert message.startswith(f"The run could not write to '{tmp_path / 'run'}': ")
    assert message.endswith(
        "Its last checkpoint, checkpoint-2, is whole: make room, and add --resume to continue from there."
    )
    finetune(read_recipe(path), resume=True)
    assert adapter(tmp_path / "run") == undisturbed(path, tmp_path)


def test_a_disk_that_is_full_from_the_start(path, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(PacaError, match=r"No space left on device. No checkpoint was written yet: make room"):
        finetune(read_recipe(path), doctor=False)


def test_a_folder_that_may_not_be_written_to(path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("paca.workbench.training.run_folder.write_text", refuse)
    with pytest.raises(PacaError, match=r"Permission denied\. Name a folder that you may write to with --output DIR"):
        finetune(read_recipe(path))


def test_other_errors_are_left_alone(path, monkeypatch):
    at_step(monkeypatch, 1, lambda: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        finetune(read_recipe(path))


def worsening(monkeypatch):
    """Make every evaluation of Trainer worse than the one before it."""
    losses = iter(range(1, 100))
    original = trl.SFTTrainer.evaluate

    def evaluate_and_tell(self, *args, **kwargs):
        told = self.callback_handler.on_evaluate
        self.callback_handler.on_evaluate = lambda a, s, c, metrics: told(
            a, s, c, {**metrics, "eval_loss": self._next}
        )
        self._next = float(next(losses))
        try:
            return {**original(self, *args, **kwargs), "eval_loss": self._next}
        finally:
            self.callback_handler.on_evaluate = told

    monkeypatch.setattr(trl.SFTTrainer, "evaluate", evaluate_and_tell)


def test_early_stopping_keeps_the_best_checkpoint(path, tmp_path, monkeypatch):
    recipe = read_recipe(path, ["early_stopping={patience: 1}", "training.max_steps=12"])
    assert recipe.all_training["eval_steps"] == 2
    with monkeypatch.context() as patch:
        worsening(patch)
        metrics = finetune(recipe)
    assert metrics["steps"] == 4  # the evaluation at 2 is the best, that at 4 is no better
    assert adapter(tmp_path / "run") == (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    untold = finetune(read_recipe(path, ["training.max_steps=12", f"output_dir={tmp_path / 'whole'}"]))
    assert untold["steps"] == 12


def test_a_run_killed_after_it_stopped_early_takes_no_other_step(path, tmp_path, monkeypatch):
    recipe = read_recipe(path, ["early_stopping={patience: 1}", "training.max_steps=12"])
    with monkeypatch.context() as patch:
        worsening(patch)
        patch.setattr("paca.workbench.training.text._save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe)
    at_step(monkeypatch, 1, lambda: pytest.fail("a step was taken"))
    assert finetune(recipe, resume=True)["steps"] == 4
    assert adapter(tmp_path / "run") == (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").read_bytes()


def test_early_stopping_needs_evaluations(path):
    with pytest.raises(PacaError, match=r"early_stopping: .*training\.eval_strategy"):
        read_recipe(path, ["early_stopping.patience=2", "training.eval_strategy=no"])
    for value, expected in (("0", "expected at least 1 evaluation"), ("many", "expected int, got str")):
        with pytest.raises(PacaError, match=f"early_stopping.patience = .*{expected}"):
            read_recipe(path, [f"early_stopping.patience={value}"])


def test_logging_to_tensorboard(path, tmp_path):
    pytest.importorskip("tensorboard")
    finetune(read_recipe(path, ["training.report_to=tensorboard"]))
    assert list((tmp_path / "run" / "runs").rglob("events.out.tfevents.*"))
    finetune(read_recipe(path), overwrite=True)
    assert not (tmp_path / "run" / "runs").exists()


def test_a_logger_that_is_not_installed_or_not_known(path):
    with pytest.raises(
        PacaError, match=r"training\.report_to = 'comet_ml' needs a package that is not installed: pip"
    ):
        read_recipe(path, ["training.report_to=comet_ml"])
    with pytest.raises(
        PacaError, match=r"report_to = 'tensorbord': there is no such logger; did you mean 'tensorboard'"
    ):
        read_recipe(path, ["training.report_to=[tensorbord]"])
