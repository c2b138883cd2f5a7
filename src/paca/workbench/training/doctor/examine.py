"""Examines a run before its first step: data, model, and one rehearsal of everything that it will do."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paca.errors import first_few
from paca.tuner.config import PacaConfig
from paca.tuner.export.lora import lora_problems
from paca.tuner.layers.find import PEFT_PREFIX
from paca.workbench.base.change import LEAST_SHARE
from paca.workbench.base.processes import world_size
from paca.workbench.base.waiting import stage
from paca.workbench.data.loss_facts import count_loss, eos_token_ids
from paca.workbench.data.preference import sequences
from paca.workbench.data.prepare import Counted, TrainingData, spread
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.tasks import TEXT
from paca.workbench.training.checkpoints import checkpoint_folders
from paca.workbench.training.doctor.batch_size import set_micro_batch
from paca.workbench.training.doctor.findings import Finding, fine, note, problem, warning
from paca.workbench.training.doctor.rehearsal import Rehearsal, rehearse
from paca.workbench.training.report import count_parameters

MOST_SEQUENCES = 2000  # whose labels are read, at most
MOST_NAMED = 3
MUCH_CUT = 0.1
ROUND_LENGTH = 64  # the lengths that are named are its multiples
LITTLE_SHOWN = 0.5
LITTLE_LOSS = 0.01  # of a sequence that the model knows by heart, whose loss no rate changes


def examine(trainer: Any, recipe: Recipe, folder: Path, data: TrainingData | None = None) -> list[Finding]:
    """Examine a run, and split its batch if it does not fit into memory; all else stays as it is, bit for bit.

    The trainer has not trained yet; `data` is what text was encoded to, None for images. With several processes
    nothing is rehearsed, since these wait for each other in every step.
    """
    findings = data_findings(trainer, data) if data is not None else ()
    if world_size() > 1:
        rehearsed = fine(f"nothing was rehearsed: {world_size()} processes train together")
        return [*model_findings(trainer.model, recipe), *findings, rehearsed]
    wanted, evaluated = trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size
    stage("rehearsing the run")
    rehearsal = rehearse(trainer, folder)
    if rehearsal.micro_batch < wanted:
        set_micro_batch(trainer, rehearsal.micro_batch)
    trainer.args.per_device_eval_batch_size = rehearsal.eval_batch
    return [
        *model_findings(trainer.model, recipe, rehearsal),
        *findings,
        *rehearsal_findings(rehearsal, trainer, folder, wanted, evaluated),
    ]


def model_findings(model: Any, recipe: Recipe, rehearsal: Rehearsal | None = None) -> Iterator[Finding]:
    """Look at what of a model is trained; layers that a rehearsal never called are not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uncalled = rehearsal.uncalled if rehearsal else []
    counted = count_parameters(model)
    trained = counted.trained - (rehearsal.uncalled_values if rehearsal else 0)
    layers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    called = [name for name in layers if name.removeprefix(PEFT_PREFIX) not in uncalled]
    kinds = Counter(name.rsplit(".", 1)[-1] for name in called)
    listed = ", ".join(f"{kind} ×{number}" for kind, number in kinds.most_common(12))
    text = f"{trained:,} of {counted.total:,} parameters are trained ({trained / max(counted.total, 1):.2%})"
    yield (
        fine(f"{text}, in {len(called)} layers: {listed}")
        if counted.trained
        else problem("No parameter is trained; name layers with method.target_modules=all-linear.")
    )
    if rehearsal and uncalled:
        yield _uncalled(rehearsal, called)
    targets = recipe.method.config.get("target_modules")
    if isinstance(targets, list):
        unmatched = [name for name in targets if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
        if unmatched:
            yield warning(f"none of the layers that method.target_modules names is adapted: {', '.join(unmatched)}")
    yield from _tied(model)
    yield from _export(model, recipe)


def _uncalled(rehearsal: Rehearsal, called: list[str]) -> Finding:
    """Layers that take no part: a kernel reads their weights, no token was routed to them, or they are for images."""
    names = rehearsal.uncalled
    last, others = ({name.rsplit(".", 1)[-1] for name in some} for some in (names, called))
    excluded = first_few(names if last & others else sorted(last), most=len(last))
    return warning(
        f"{len(names)} of {rehearsal.layers} adapted layers were never called in three steps "
        f"({first_few(names, MOST_NAMED)}): other code reads their weights, as a state-space kernel does, or none "
        f"does. Nothing is trained of them, and their {rehearsal.uncalled_values:,} values aren't counted. Leave them "
        f"out, as by method.exclude_modules='[{excluded}]'."
    )


def _export(model: Any, recipe: Recipe) -> Iterator[Finding]:
    """What of an adapter of a language model could not be given to a LoRA server."""
    adapter = getattr(model, "peft_config", {}).get("default")
    problems = lora_problems(model) if recipe.task == TEXT and isinstance(adapter, PacaConfig) else []
    if problems:
        yield note(
            f"`paca export --to lora` won't take this adapter: {first_few(problems, MOST_NAMED, '; ')}. "
            "`--to merged` will."
        )


def _tied(model: Any) -> Iterator[Finding]:
    inputs, outputs = (getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output"))
    weights = [getattr(module, "weight", None) for module in (inputs, outputs)]
    if weights[0] is None or weights[0] is not weights[1]:
        return
    if getattr(weights[0], "requires_grad", False):
        yield warning("input and output embeddings are one tensor (tied), and it is trained: both change")
    else:
        yield fine("input and output embeddings are one tensor (tied), which is not trained")


def data_findings(trainer: Any, data: TrainingData) -> Iterator[Finding]:
    """Look at what of the data carries loss, ends, and was cut."""
    looked_at = spread(range(len(data.train)), MOST_SEQUENCES)
    facts = count_loss(
        sequences(data.train.select(looked_at), trainer.args.max_length),
        eos_token_ids(trainer.processing_class, trainer.model),
    )
    yield fine(
        f"{len(data.train):,} training sequences, {facts.learned / max(facts.tokens, 1):.1%} of their tokens carry "
        f"loss; {len(data.held_out):,} of {data.held_out_total:,} held-out sequences are evaluated"
    )
    ends = f"{facts.ending:,} of {facts.sequences:,} sequences teach an EOS token"
    if facts.ending == 0:
        yield warning(
            f"{ends}: the model is never taught to stop. Raise training.max_length if answers are cut, or end the "
            "answers in the data with the tokenizer's EOS token."
        )
    else:
        yield fine(ends)
    yield _cut_finding(data.counted, trainer.args.max_length, "rows")
    if data.counted_held_out.cut or data.counted_held_out.too_long:
        yield _cut_finding(data.counted_held_out, trainer.args.max_length, "held-out rows")
    yield from map(warning, data.remarks.lines())
    yield from map(note, data.remarks.unused_columns())


def _cut_finding(counted: Counted, length: int | None, what: str) -> Finding:
    """What became of rows that are longer than a sequence may be, and the length at which most would not be."""
    tenth = sorted(counted.lengths)[math.ceil(0.9 * len(counted.lengths)) - 1]
    longest = f"the longest has {max(counted.lengths):,} tokens"
    raised = f"training.max_length={-(-tenth // ROUND_LENGTH) * ROUND_LENGTH} takes nine of ten {what} whole"
    if counted.too_long:
        share = counted.too_long / len(counted.lengths)
        text = (
            f"{counted.too_long:,} of {len(counted.lengths):,} {what} ({share:.0%}) are longer than "
            f"training.max_length = {length}, and left out; {longest}"
        )
        return note(f"{text}. {raised}.") if share > MUCH_CUT else fine(text)
    if not counted.cut:
        return fine(f"no row is longer than training.max_length = {length} (the longest: {max(counted.lengths)})")
    share = counted.cut / len(counted.lengths)
    text = (
        f"{counted.cut:,} of {len(counted.lengths):,} {what} ({share:.0%}) are cut at training.max_length = {length}, "
        f"{counted.dropped:,} of them lose all that they teach; {longest}"
    )
    if share > MUCH_CUT:
        text = f"{text}. {raised}; data.whole_rows=true leaves the longer ones out."
    return warning(text) if share > MUCH_CUT or counted.dropped else fine(text)


def rehearsal_findings(
    rehearsal: Rehearsal, trainer: Any, folder: Path, wanted: int, evaluated: int
) -> Iterator[Finding]:
    """Say what a rehearsal showed.

    The trainer's batch is split where it had to be; the recipe asked for `wanted` sequences per device in training,
    and `evaluated` in evaluation.
    """
    arguments = trainer.args
    steps = total_steps(trainer)
    yield from _learning(rehearsal, arguments, steps)
    if rehearsal.micro_batch < wanted:
        yield warning(
            f"out of memory with {wanted} sequences at once: training continues with {rehearsal.micro_batch} at once "
            f"and {arguments.gradient_accumulation_steps} accumulated, so that a step takes as many as before"
        )
    if rehearsal.eval_batch < evaluated:
        yield warning(
            f"out of memory in evaluation with {evaluated} sequences at once: {rehearsal.eval_batch} are taken"
        )
    peak = "" if rehearsal.peak_bytes is None else f", {rehearsal.peak_bytes / 2**30:.1f} GiB at the peak"
    seconds = steps * rehearsal.seconds * arguments.gradient_accumulation_steps
    yield note(
        f"the longest batch, an evaluation and a checkpoint went well{peak}; at most about {_duration(seconds)} for "
        f"{steps:,} steps, if all batches were the longest"
    )
    keep = (arguments.save_total_limit or steps) + 1
    needed = rehearsal.checkpoint_bytes * keep
    if needed > rehearsal.free_bytes and not checkpoint_folders(folder):
        yield warning(
            f"{keep} checkpoints of {_megabytes(rehearsal.checkpoint_bytes)} do not fit: "
            f"{_megabytes(rehearsal.free_bytes)} are free in {str(folder)!r}"
        )


def _learning(rehearsal: Rehearsal, arguments: Any, steps: int) -> Iterator[Finding]:
    if not all(map(math.isfinite, rehearsal.losses)):
        losses = ", ".join(f"{loss:g}" for loss in rehearsal.losses)
        yield problem(
            f"The loss is not finite within {len(rehearsal.losses)} steps ({losses}). Lower training.learning_rate = "
            f"{arguments.learning_rate:g}, or set model.dtype=bfloat16 where it is float16."
        )
        return
    missed, called = rehearsal.without_gradient, rehearsal.layers - len(rehearsal.uncalled)
    named = first_few(missed or rehearsal.uncalled, MOST_NAMED)
    if rehearsal.layers and len(missed) == called:
        yield problem(f"No gradient reaches any of the {rehearsal.layers} adapted layers ({named}).")
    elif missed:
        yield warning(f"no gradient reached {len(missed)} of {called} adapted layers in three steps: {named}")
    else:
        yield fine(f"a gradient reaches all {called} adapted layers" + (" that are called" * bool(rehearsal.uncalled)))
    rate = f"training.learning_rate = {arguments.learning_rate:g}"
    if rehearsal.moved == 0:
        yield warning(f"no trained value moved in three steps at {rate}: it is too low for their dtype, or zero")
    elif rehearsal.shown is not None and rehearsal.shown < LITTLE_SHOWN:
        yield warning(
            f"only {rehearsal.shown:.0%} of the trained values of the weights moved in three steps at {rate}: the "
            "rest of the updates is lost in rounding until they have grown. Raise the rate or method.paca_alpha, or "
            "set model.dtype=float32."
        )
    elif rehearsal.effect * steps / len(rehearsal.losses) < LEAST_SHARE and rehearsal.losses[0] > LITTLE_LOSS:
        yield warning(
            f"three steps at {rate} changed the loss of a sequence by {rehearsal.effect:.0e}: {steps:,} steps leave "
            "the model as it is, within rounding. Raise the rate."
        )
    else:
        share = rehearsal.moved if rehearsal.shown is None else rehearsal.shown
        yield fine(f"{share:.0%} of the trained values moved in three steps at {rate}")


def total_steps(trainer: Any) -> int:
    """Count the optimizer steps of a run: `max_steps`, or what the epochs come to."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * world_size()
    return max(math.ceil(arguments.num_train_epochs * len(trainer.train_dataset) / per_step), 1)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
