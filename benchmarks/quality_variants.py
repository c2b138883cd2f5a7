"""The methods that `quality.py` compares, all at LoRA's number of trained values, and one run of one."""

import copy
import re
import time
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from paca import PacaConfig
from quality_tasks import Batch, Subject, Task
from stepping import linear_decay, make_optimizer

LORA_RANK = 8
_HEAD_RATE = 2e-3


@dataclass(frozen=True)
class Variant:
    """A method, where it is put, and what steps it.

    Args:
        name: What is typed.
        description: In one line.
        method: `lora` or `paca`.
        layers: A key of the task's layers.
        optimizer: `adamw` or `muon`.
        rate: Where the search of its learning rate begins.
    """

    name: str
    description: str
    method: str
    layers: str
    optimizer: str
    rate: float


LORA = "lora"
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(LORA, "LoRA r 8, all linear layers", "lora", "all", "adamw", 4e-3),
        Variant("paca-all", "PaCA, all linear layers", "paca", "all", "adamw", 8e-3),
        Variant("paca-out", "PaCA, the MLPs' output projections", "paca", "out", "adamw", 4e-3),
        Variant("lora-muon", "LoRA r 8, all linear layers, Muon", "lora", "all", "muon", 1.6e-2),
        Variant("paca-all-muon", "PaCA, all linear layers, Muon", "paca", "all", "muon", 1.6e-2),
        Variant("paca-out-muon", "PaCA, the MLPs' output projections, Muon", "paca", "out", "muon", 1.6e-2),
        Variant("paca-o-out", "PaCA, output projections of attention and MLP", "paca", "o-out", "adamw", 4e-3),
        Variant("paca-attention", "PaCA, attention's four projections", "paca", "attention", "adamw", 8e-3),
        Variant("paca-upper", "PaCA, all linear layers of the upper half", "paca", "upper", "adamw", 8e-3),
    )
}
MAIN = tuple(VARIANTS)[:6]


def matched(model: nn.Module, pattern: str) -> list[Tensor]:
    """The weights of the layers that a pattern matches as PEFT does."""
    return [module.weight for name, module in model.named_modules() if re.fullmatch(pattern, name)]


def equal_rank(model: nn.Module, everywhere: str, here: str) -> int:
    """PaCA's rank on some layers at which it trains as many values as LoRA does on all of them."""
    values = sum(LORA_RANK * sum(weight.shape[:2]) for weight in matched(model, everywhere))
    return round(values / sum(weight.shape[0] for weight in matched(model, here)))


def adapted(variant: Variant, task: Task, subject: Subject, seed: int) -> Any:
    """Put a variant's method onto a copy of the task's model.

    Args:
        variant: It.
        task: Names the layers.
        subject: Has the model.
        seed: Of the connections, or of LoRA's first values.

    Returns:
        The model to train.
    """
    torch.manual_seed(seed)
    model, targets = copy.deepcopy(subject.model), task.layers[variant.layers]
    shared = {"target_modules": targets, "modules_to_save": list(subject.whole) or None}
    if variant.method == "lora":
        return get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, **shared))
    rank = equal_rank(model, task.layers["all"], targets)
    return get_peft_model(model, PacaConfig(r=rank, clamp_rank=True, random_seed=seed, **shared))


def loss_over(model: nn.Module, batches: list[Batch]) -> float | None:
    """The mean loss over all that carries one, in evaluation mode; None where there are no batches."""
    if not batches:
        return None
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            labels = batch["labels"]
            carrying = int((labels[:, 1:] if labels.dim() > 1 else labels).ge(0).sum())
            total += model(**batch).loss.item() * carrying
            count += carrying
    return total / count


def run_once(variant: Variant, task: Task, subject: Subject, rate: float, seed: int, choosing: bool) -> dict[str, Any]:
    """Train one variant once.

    Args:
        variant: The method.
        task: What it learns.
        subject: The same, loaded.
        rate: The peak of the learning rate.
        seed: Of connections, LoRA's first values, and the order of the data.
        choosing: The held-out set that rates are chosen by, in place of the one that methods are compared by.

    Returns:
        Held-out loss, the loss on what the model knew, trained values, and processor seconds of a step.
    """
    model = adapted(variant, task, subject, seed)
    stepper = make_optimizer(model, variant.optimizer, rate, others=_HEAD_RATE)
    schedule, batches, training = linear_decay(task.steps), subject.batches(seed), []
    model.train()
    spent = 0.0
    for number in range(task.steps):
        batch = next(batches)
        started = time.process_time()
        stepper.at(schedule(number))
        loss = model(**batch).loss
        loss.backward()
        stepper.take()
        spent += time.process_time() - started
        training.append(loss.item())
    return {
        "loss": loss_over(model, subject.choosing if choosing else subject.testing),
        "unrelated": None if choosing else loss_over(model, subject.unrelated),
        "trained": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "cpu_seconds_per_step": spent / task.steps,
        "train_loss": sum(training[-10:]) / len(training[-10:]),
    }
