"""Everything that a run does, once and at its largest, before its first step: steps, an evaluation, a checkpoint."""

import contextlib
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paca.errors import PacaError, first_few
from paca.workbench.base.files import discard
from paca.workbench.base.messages import one_line
from paca.workbench.data.preference import LENGTH
from paca.workbench.methods.adapted_layers import adapted_layers, trained_parameters
from paca.workbench.training.doctor.batch_size import largest_micro_batch
from paca.workbench.training.doctor.snapshot import untouched

REHEARSED = ".rehearsal"


@dataclass
class Rehearsal:
    """What was measured.

    Args:
        micro_batch: Sequences per device that fit in training.
        eval_batch: Sequences per device that fit in evaluation.
        losses: Of each step.
        without_gradient: Adapted layers that were called and that no gradient reached, by name.
        uncalled: Adapted layers that the model never called, so that nothing of them took part.
        uncalled_values: What was to be trained of these.
        layers: How many adapted layers there are.
        moved: The share of trained values that are others after three steps.
        shown: The share of PaCA's trained connections whose values in the weight are others; None where there are
            none in plain weights.
        effect: By how much the loss of the shortest sequence changed over the steps, without dropout.
        seconds: One step on the longest batch.
        peak_bytes: On a CUDA device, of the longest batch.
        checkpoint_bytes: What one checkpoint takes on the disk.
        free_bytes: What is free there.
    """

    micro_batch: int = 0
    eval_batch: int = 0
    losses: list[float] = field(default_factory=list)
    without_gradient: list[str] = field(default_factory=list)
    uncalled: list[str] = field(default_factory=list)
    uncalled_values: int = 0
    layers: int = 0
    moved: float = 0.0
    shown: float | None = None
    effect: float = math.nan
    seconds: float = 0.0
    peak_bytes: int | None = None
    checkpoint_bytes: int = 0
    free_bytes: int = 0


def rehearse(trainer: Any, folder: Path) -> Rehearsal:
    """Rehearse a run that has not trained yet, on one process, and leave everything as it was.

    `folder` is where checkpoints will go; it exists. A PacaError if one sequence does not fit into memory, or no
    checkpoint can be written.
    """
    found = Rehearsal()
    lengths = _lengths(trainer.train_dataset)
    with untouched(trainer), _all_chosen(trainer.model):
        start = [parameter.detach().clone() for parameter in trained_parameters(trainer.model)]
        _checkpoint_activations(trainer)
        trainer.model.train()
        optimizer = trainer.create_optimizer()
        reached: set[str] = set()
        called: set[str] = set()

        def steps(size: int) -> None:
            found.losses.clear()
            # The optimizer makes its state in the first of them, before the largest.
            _step(trainer, optimizer, _shortest(lengths, 1), found, reached, called)
            found.seconds = _step(trainer, optimizer, _longest(lengths, size), found, reached, called)
            _step(trainer, optimizer, _shortest(lengths, 1), found, reached, called)

        try:
            loss = _loss_without_dropout(trainer, _shortest(lengths, 1))
            found.micro_batch = largest_micro_batch(trainer.args.per_device_train_batch_size, steps)
            found.peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
            layers = adapted_layers(trainer.model)
            found.layers, found.without_gradient = len(layers), [name for name in layers if name in called - reached]
            found.uncalled = [name for name in layers if name not in called]
            found.uncalled_values = sum(
                parameter.numel() for name in found.uncalled for parameter in trained_parameters(layers[name])
            )
            unused = {id(one) for name in found.uncalled for one in trained_parameters(layers[name])}
            pairs = zip(start, trained_parameters(trainer.model), strict=True)
            found.moved = _share((old, new) for old, new in pairs if id(new) not in unused)
            found.shown = shown_share(trainer.model)
            found.effect = abs(_loss_without_dropout(trainer, _shortest(lengths, 1)) - loss)
            if all(map(math.isfinite, found.losses)):  # else NaN is compared, which equals nothing
                _write_and_reload(trainer, optimizer, folder / REHEARSED, found)
            optimizer.zero_grad()
            found.eval_batch = _evaluate(trainer)
        finally:
            _checkpoint_activations(trainer, enable=False)
    return found


def _lengths(data_set: Any) -> list[int]:
    """How many tokens each row has; all the same where rows are no sequences."""
    columns = getattr(data_set, "column_names", None) or ()
    if "input_ids" in columns:
        return [len(ids) for ids in data_set["input_ids"]]
    return list(data_set[LENGTH]) if LENGTH in columns else [1] * len(data_set)


def _longest(lengths: Sequence[int], count: int) -> list[int]:
    """The rows of the longest batch: where there are too few, some come twice."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[position % len(order)] for position in range(count)]


def _shortest(lengths: Sequence[int], count: int) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)[:count]


def _batch(trainer: Any, data_set: Any, rows: Sequence[int]) -> Any:
    return trainer._prepare_inputs(trainer.data_collator([data_set[row] for row in rows]))


def _step(
    trainer: Any, optimizer: Any, rows: Sequence[int], found: Rehearsal, reached: set[str], called: set[str]
) -> float:
    """Take one optimizer step and return its seconds; note which layers were called, and which a gradient reached."""
    started = time.perf_counter()
    optimizer.zero_grad()
    inputs = _batch(trainer, trainer.train_dataset, rows)
    with (
        _noting_calls(trainer.model, called),
        trainer.compute_loss_context_manager(),
        trainer.accelerator.autocast(),
    ):
        loss = trainer.compute_loss(trainer.model, inputs)
    if not loss.requires_grad:
        layers = list(adapted_layers(trainer.model))
        raise PacaError(
            f"This run would be wasted: the loss depends on none of the {len(layers)} adapted layers "
            f"({first_few(layers, 3)}): the model never calls them, or detaches what they return. Name other layers "
            "in method.target_modules."
        )
    loss.backward()
    found.losses.append(loss.item())
    gradients = {name: _gradients(layer) for name, layer in adapted_layers(trainer.model).items()}
    called.update(name for name, made in gradients.items() if made)
    reached.update(name for name, made in gradients.items() if any(bool(one.any()) for one in made))
    if trainer.args.max_grad_norm:
        nn.utils.clip_grad_norm_(trained_parameters(trainer.model), trainer.args.max_grad_norm)
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _loss_without_dropout(trainer: Any, rows: Sequence[int]) -> float:
    trainer.model.eval()
    inputs = _batch(trainer, trainer.train_dataset, rows)
    with torch.no_grad(), trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, inputs)
    trainer.model.train()
    return float(loss)


@contextlib.contextmanager
def _noting_calls(model: nn.Module, called: set[str]) -> Iterator[None]:
    """Note the names of the adapted layers that are called inside a `with` block."""

    def note(name: str, *_: Any) -> None:
        called.add(name)

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in adapted_layers(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gradients(layer: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in trained_parameters(layer) if parameter.grad is not None]


def _share(pairs: Any) -> float:
    """The share of values that differ between pairs of tensors."""
    counts = [(int((old != new).sum()), old.numel()) for old, new in pairs]
    return sum(changed for changed, _ in counts) / max(sum(total for _, total in counts), 1)


def shown_share(model: nn.Module) -> float | None:
    """The share of trained connections' values that an update changes through the rounding of the weight's dtype.

    None where no plain weight is adapted by PaCA.
    """
    from paca.method.columns.resident import Columns
    from paca.method.columns.update import connection_union
    from paca.tuner.layers.base import PacaLayer

    pairs = []
    for layer in model.modules():
        if isinstance(layer, PacaLayer) and isinstance(layer.columns, Columns):
            updates = layer.updates(layer.active_adapters)
            if updates:
                before = layer.pretrained_columns(connection_union(updates))
                pairs.append((before, layer.columns.would_be(layer.base_weight, updates)))
    return _share(pairs) if pairs else None


@contextlib.contextmanager
def _all_chosen(model: Any) -> Iterator[None]:
    """Let connections that wait for data be trained as they are; which they are makes little difference here."""
    tuner = getattr(model, "base_model", model)
    waiting = getattr(tuner, "unselected", None)
    if not waiting:
        yield
        return
    tuner.unselected = frozenset()
    try:
        yield
    finally:
        tuner.unselected = waiting


def _checkpoint_activations(trainer: Any, enable: bool = True) -> None:
    """Recompute activations as `Trainer.train` will, or stop doing so."""
    arguments, model = trainer.args, trainer.model
    if not arguments.gradient_checkpointing:
        return
    if not enable:
        stop = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        stop()
        return
    given = getattr(arguments, "activation_checkpointing_kwargs", None) or arguments.gradient_checkpointing_kwargs
    options = {key: value for key, value in (given or {}).items() if key not in ("every_n_layers", "offload")}
    start = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    start(options or None)


def _evaluate(trainer: Any) -> int:
    """Evaluate the longest batch of held-out data; a batch that does not fit is made smaller, results are the same."""
    lengths = _lengths(trainer.eval_dataset)
    trainer.model.eval()

    def attempt(size: int) -> None:
        inputs = _batch(trainer, trainer.eval_dataset, _longest(lengths, min(size, len(lengths))))
        with torch.no_grad(), trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            getattr(trainer, "measure_batch", lambda batch: trainer.model(**batch))(inputs)

    return largest_micro_batch(trainer.args.per_device_eval_batch_size, attempt)


def _write_and_reload(trainer: Any, optimizer: Any, folder: Path, found: Rehearsal) -> None:
    """Write what a checkpoint holds, read it again, and compare."""
    from peft import get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    discard(folder)
    try:
        trainer.model.save_pretrained(folder)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        found.checkpoint_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found.free_bytes = shutil.disk_usage(folder).free
        read = load_file(folder / "adapter_model.safetensors")
        torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PacaError(f"No checkpoint can be written to {str(folder.parent)!r}: {one_line(error)}") from error
    finally:
        discard(folder)
    held = get_peft_model_state_dict(trainer.model)
    differ = [name for name in held if name not in read or not torch.equal(held[name].cpu(), read[name])]
    if differ:
        raise PacaError(
            f"A checkpoint does not hold what was trained: {len(differ)} tensors differ once they are read again, "
            f"{differ[0]} first."
        )
