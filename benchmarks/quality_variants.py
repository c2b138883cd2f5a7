"""The methods that `quality.py` compares, all at LoRA's number of trained values, and one run of one."""

import copy
import re
import time
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from paca import PacaConfig, register_selection, select_connections
from paca.profiling.steps import TrainingStep
from paca.tuner.layers.norm import is_norm
from paca.tuner.selection.facts import LayerFacts
from paca.tuner.selection.registry import find_strategy, strategies
from paca.tuner.selection.weight import column_energies
from paca.workbench.base.search import largest_that_fits
from quality_tasks import Batch, Subject, Task
from stepping import WARMUP, linear_decay, make_optimizer

LORA_RANK = 8
_HEAD_RATE = 2e-3
_SELECTION_BATCHES = 8
_SMOOTHED_RANK = 16


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
        selection: PaCA's strategy; one that needs data sees the first batches of the run.
        longer: So many times the task's steps.
        by_memory: The rank is the largest whose steps peak no higher than LoRA's, and not that of as many values.
        warmup: The share of the steps over which the rate rises.
        decay: AdamW's weight decay: toward the pretrained columns, for LoRA of its factors.
        restored: The columns are those of before quantization; for quantized models.
        norms: The norms' weights are trained as well, within the same number of values for PaCA: those of all blocks,
            or of the upper half where its layers alone are.
    """

    name: str
    description: str
    method: str
    layers: str
    optimizer: str
    rate: float
    selection: str = "random"
    longer: float = 1.0
    by_memory: bool = False
    warmup: float = WARMUP
    decay: float = 0.0
    restored: bool = False
    norms: bool = False


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
        Variant("paca-mlp", "PaCA, the MLPs' three projections", "paca", "mlp", "adamw", 8e-3),
        Variant("paca-mlp-longer", "paca-mlp, 1.3 × the steps", "paca", "mlp", "adamw", 8e-3, longer=1.3),
        Variant("paca-mlp-norms", "paca-mlp, and norms", "paca", "mlp", "adamw", 1.6e-2, norms=True),
        Variant(
            "paca-mlp-norms-longer",
            "paca-mlp-norms, 1.2 × the steps",
            "paca",
            "mlp",
            "adamw",
            1.6e-2,
            longer=1.2,
            norms=True,
        ),
        Variant(
            "paca-mlp-norms-memory",
            "paca-mlp-norms at LoRA's peak memory",
            "paca",
            "mlp",
            "adamw",
            8e-3,
            by_memory=True,
            norms=True,
        ),
        Variant("paca-attention", "PaCA, attention's four projections", "paca", "attention", "adamw", 8e-3),
        Variant("lora-upper", "LoRA r 16, all linear layers of the upper half", "lora", "upper", "adamw", 8e-3),
        Variant("lora-upper-norms", "lora-upper, and its norms", "lora", "upper", "adamw", 8e-3, norms=True),
        Variant("lora-upper-longer", "lora-upper, 1.65 × the steps", "lora", "upper", "adamw", 8e-3, longer=1.65),
        Variant("paca-upper", "PaCA, all linear layers of the upper half", "paca", "upper", "adamw", 8e-3),
        Variant(
            "paca-upper-memory", "paca-upper at LoRA's peak memory", "paca", "upper", "adamw", 4e-3, by_memory=True
        ),
        Variant("paca-upper-norms", "paca-upper, and its norms", "paca", "upper", "adamw", 1.6e-2, norms=True),
        Variant(
            "paca-upper-mlp-norms",
            "PaCA, the MLPs' three projections and the norms of the upper half",
            "paca",
            "upper-mlp",
            "adamw",
            1.6e-2,
            norms=True,
        ),
        Variant(
            "paca-upper-mlp-norms-longer",
            "paca-upper-mlp-norms, 1.8 × the steps",
            "paca",
            "upper-mlp",
            "adamw",
            1.6e-2,
            longer=1.8,
            norms=True,
        ),
        Variant("paca-out-gradient", "paca-out, largest gradients", "paca", "out", "adamw", 2e-3, "gradient"),
        Variant("paca-out-weight", "paca-out, largest columns", "paca", "out", "adamw", 4e-3, "weight"),
        Variant(
            "paca-out-weight-activation",
            "paca-out, largest columns times inputs",
            "paca",
            "out",
            "adamw",
            2e-3,
            "weight_activation",
        ),
        Variant(
            "paca-out-smoothed",
            "paca-out, largest columns of the weight's best approximation of rank 16",
            "paca",
            "out",
            "adamw",
            4e-3,
            "smoothed_weight",
        ),
        Variant(
            "paca-out-weight-gradient",
            "paca-out, largest columns times gradients",
            "paca",
            "out",
            "adamw",
            4e-3,
            "weight_gradient",
        ),
        Variant("lora-norms", "LoRA r 8, all linear layers, and norms", "lora", "all", "adamw", 4e-3, norms=True),
        Variant("paca-norms", "PaCA, all linear layers, and norms", "paca", "all", "adamw", 8e-3, norms=True),
        Variant("paca-out-norms", "paca-out, and norms", "paca", "out", "adamw", 8e-3, norms=True),
        Variant("paca-all-longer", "paca-all, 1.15 × the steps", "paca", "all", "adamw", 8e-3, longer=1.15),
        Variant(
            "paca-norms-longer", "paca-norms, 1.15 × the steps", "paca", "all", "adamw", 8e-3, longer=1.15, norms=True
        ),
        Variant("paca-out-longer", "paca-out, 1.4 × the steps", "paca", "out", "adamw", 8e-3, longer=1.4),
        Variant("paca-all-memory", "paca-all at LoRA's peak memory", "paca", "all", "adamw", 4e-3, by_memory=True),
        Variant(
            "paca-all-memory-half",
            "paca-all-memory, half of the steps",
            "paca",
            "all",
            "adamw",
            8e-3,
            longer=0.5,
            by_memory=True,
        ),
        Variant("lora-warm", "LoRA r 8, rising over a fifth of the steps", "lora", "all", "adamw", 8e-3, warmup=0.2),
        Variant(
            "paca-all-warm", "paca-all, rising over a fifth of the steps", "paca", "all", "adamw", 8e-3, warmup=0.2
        ),
        Variant("lora-decay", "LoRA r 8, weight decay 0.1", "lora", "all", "adamw", 8e-3, decay=0.1),
        Variant("paca-all-decay", "paca-all, weight decay 0.1", "paca", "all", "adamw", 8e-3, decay=0.1),
        Variant(
            "paca-norms-memory",
            "paca-norms at LoRA's peak memory",
            "paca",
            "all",
            "adamw",
            4e-3,
            by_memory=True,
            norms=True,
        ),
        Variant(
            "paca-all-restored",
            "paca-all, largest columns times inputs, as they were before quantization",
            "paca",
            "all",
            "adamw",
            2e-3,
            "weight_activation",
            restored=True,
        ),
    )
}
MAIN = tuple(VARIANTS)[:6]


def smoothed_weight_scores(facts: LayerFacts) -> Tensor:
    """Large for a large column of the weight's best approximation of rank 16 (LIFT's idea, for columns)."""
    left, scales, _ = torch.linalg.svd(facts.columns().double().flatten(1), full_matrices=False)
    return (left * scales)[:, :_SMOOTHED_RANK].square().sum(1)


def weight_gradient_scores(facts: LayerFacts) -> Tensor:
    """Large for a large column times the norm of its accumulated gradient (LoSiA's `|w g|`, for columns)."""
    return column_energies(facts.columns()) * facts.statistic


# Tried here alone. They are made known where one is asked for: what lists the strategies lists the package's own.
_TRIED = {
    "smoothed_weight": (smoothed_weight_scores, "largest column of the weight's best approximation of rank 16", None),
    "weight_gradient": (weight_gradient_scores, "largest column norm times gradient", "gradient"),
}


def matched(model: nn.Module, pattern: str) -> list[tuple[int, int]]:
    """Outputs and inputs of the layers that a pattern matches as PEFT does."""
    layers = [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]
    return [_sides(layer) for layer in layers]


def _sides(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):  # whose weight may be packed
        return layer.out_features, layer.in_features
    outputs, inputs, *_ = layer.weight.shape
    return outputs, inputs


def norms(model: nn.Module, without: str | None = None) -> dict[str, nn.Module]:
    """The norms that `train_norms` has PaCA train, by name; those that a pattern matches are left out."""
    found = {name: module for name, module in model.named_modules() if is_norm(module)}
    return {name: module for name, module in found.items() if without is None or not re.fullmatch(without, name)}


def equal_rank(model: nn.Module, everywhere: str, here: str, aside: int = 0, method: str = "paca") -> int:
    """A method's rank on some layers at which it trains as many values as LoRA does on all of them.

    Args:
        model: Has the layers.
        everywhere: The pattern of all of them.
        here: The pattern of those that are adapted.
        aside: How many values are trained beside.
        method: `lora` or `paca`.

    Returns:
        The rank.
    """
    values = sum(LORA_RANK * sum(sides) for sides in matched(model, everywhere)) - aside
    return round(values / sum(sum(sides) if method == "lora" else sides[0] for sides in matched(model, here)))


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
    if variant.by_memory:
        rank = rank_by_memory(variant, task, subject)
    else:
        trained: Any = norms(subject.model, _left_out(variant, task)).values() if variant.norms else ()
        aside = 0 if variant.method == "lora" else sum(norm.weight.numel() for norm in trained)
        rank = equal_rank(subject.model, task.layers["all"], task.layers[variant.layers], aside, variant.method)
    return with_rank(rank, variant, task, subject, seed)


def _left_out(variant: Variant, task: Task) -> str | None:
    return task.layers["lower"] if variant.layers.startswith("upper") else None


def with_rank(rank: int, variant: Variant, task: Task, subject: Subject, seed: int) -> Any:
    """The same at a rank of one's own."""
    torch.manual_seed(seed)
    model = copy.deepcopy(subject.model)
    shared = {"target_modules": task.layers[variant.layers]}
    if variant.method == "lora":
        whole = [*subject.whole, *(norms(model, _left_out(variant, task)) if variant.norms else ())]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, modules_to_save=whole or None, **shared)
        return get_peft_model(model, config)
    shared |= {"modules_to_save": list(subject.whole) or None, "train_norms": variant.norms}
    shared |= {"exclude_modules": _left_out(variant, task)} if variant.norms else {}
    if variant.selection in _TRIED and variant.selection not in strategies():
        register_selection(variant.selection, *_TRIED[variant.selection])
    source = subject.source if variant.restored else None
    chosen = {"selection": variant.selection, "selection_batches": _SELECTION_BATCHES, "column_source": source}
    model = get_peft_model(model, PacaConfig(r=rank, clamp_rank=True, random_seed=seed, **chosen, **shared))
    if find_strategy(variant.selection).data is not None:
        select_connections(model, subject.batches(seed), progress=False)
    return model


def rank_by_memory(variant: Variant, task: Task, subject: Subject) -> int:
    """The largest rank at which a training step has no more live bytes at its peak than LoRA's has."""
    key = (task.name, variant.layers, variant.norms)
    if key not in _RANKS_BY_MEMORY:
        _RANKS_BY_MEMORY[key] = _search_rank_by_memory(variant, task, subject)
    return _RANKS_BY_MEMORY[key]


_RANKS_BY_MEMORY: dict[tuple[str, str, bool], int] = {}  # finding one takes a dozen steps


def _search_rank_by_memory(variant: Variant, task: Task, subject: Subject) -> int:
    batch = next(subject.batches(0))

    def peak(of: Variant, rank: int) -> int:
        step = TrainingStep(with_rank(rank, of, task, subject, 0).train(), batch)
        step.run()  # the optimizer's state is made
        return step.peak().total

    limit = peak(VARIANTS[LORA], LORA_RANK)
    most = min(inputs for _, inputs in matched(subject.model, task.layers[variant.layers]))
    return largest_that_fits(lambda rank: peak(variant, rank) - limit, 1, most)


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
    stepper = make_optimizer(model, variant.optimizer, rate, others=_HEAD_RATE, decay=variant.decay)
    steps = round(variant.longer * task.steps)
    schedule, batches, training = linear_decay(steps, variant.warmup), subject.batches(seed), []
    model.train()
    spent = 0.0
    for number in range(steps):
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
        "steps": steps,
        "cpu_seconds_per_step": spent / steps,
        "train_loss": sum(training[-10:]) / len(training[-10:]),
    }
