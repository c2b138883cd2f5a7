"""Runs a recipe on TRL's `SFTTrainer`: evaluates, trains, evaluates again, and writes all results.

What it does with a trainer, `run_trainer`, it does for `preference.py` as well.

A process that is killed at any moment loses at most the steps since the last checkpoint. Resumed, it ends with the
same adapter file, bit for bit, as a run that was never interrupted: Trainer restores optimizer, schedule, order of the
data and random numbers, and nothing here draws a random number between the seed and the first step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from paca.workbench.base.files import discard, write_folder, write_json
from paca.workbench.base.processes import on_main
from paca.workbench.base.progress import show_losses
from paca.workbench.base.trainer_arguments import MUON
from paca.workbench.base.waiting import stage
from paca.workbench.data.chat_templates import set_chat_template
from paca.workbench.data.prepare import RawData, TrainingData, prepare_data, read_data
from paca.workbench.methods.muon import use_muon
from paca.workbench.methods.registry import method_config, refusals_explained
from paca.workbench.methods.targets import check_targets
from paca.workbench.models.adapter_files import CONFIG, WEIGHTS
from paca.workbench.models.embedded_columns import columns_of_embedded
from paca.workbench.models.lean import make_lean
from paca.workbench.models.load import load_model, load_tokenizer
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.text_arguments import training_arguments
from paca.workbench.training.adapted import find_adapter, put_on
from paca.workbench.training.checkpoint_formats import for_engine
from paca.workbench.training.checkpoints import last_complete
from paca.workbench.training.doctor.batch_size import follow_earlier_start
from paca.workbench.training.engines import adapter_state, shards, use_engine
from paca.workbench.training.held_out import evaluate
from paca.workbench.training.inputs import check_inputs, digest_of_rows, digest_of_tokens
from paca.workbench.training.report import closing_lines as closing_lines
from paca.workbench.training.report import draw_loss_curve, run_metrics
from paca.workbench.training.run_folder import ADAPTER, BEFORE, CARD, CURVE, METRICS
from paca.workbench.training.stages import examined, measured_first, train
from paca.workbench.training.step_meter import StepMeter


def prepare(recipe: Recipe) -> tuple[RawData, Any]:
    """Read a recipe's documents, and make its `SFTConfig`; a mistake in either shows before a model is loaded."""
    return read_data(recipe.data), training_arguments(recipe.all_training, recipe.output_dir, recipe.seed)


def inputs(raw: RawData) -> dict[str, Any]:
    """Digest the documents, before a tokenizer is there."""
    train = (row for part in raw.train for row in part.rows)
    held_out = {} if raw.held_out is None else {"held-out rows": digest_of_rows(raw.held_out.rows)}
    return {"training rows": digest_of_rows(train), **held_out}


def _token_inputs(data: TrainingData) -> dict[str, Any]:
    """Digest what the tokenizer and its chat template made of the documents, which were found to be the same."""
    made = {"training": data.train, "held-out": data.held_out}
    return {
        f"{part} sequences that the tokenizer makes of the same rows": digest_of_tokens(
            sequences.select_columns([name for name in sequences.column_names if name.endswith(("_ids", "labels"))])
        )
        for part, sequences in made.items()
    }


def _adapter_inputs(recipe: Recipe) -> dict[str, Any]:
    """Digest the adapter that is trained on, which a preference run compares with until its end."""
    if recipe.model.adapter is None:
        return {}
    adapter = find_adapter(recipe.model.adapter).adapter or Path()
    files = [(adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)]
    return {"files of the adapter that model.adapter names": digest_of_rows(files)}


def load(recipe: Recipe, raw: RawData, arguments: Any) -> tuple[Any, TrainingData]:
    """Make an `SFTTrainer` whose model bears the adapter; and the data that it was given."""
    loaded = load_recipe(recipe, raw, arguments)
    return make_trainer(recipe, arguments, *loaded), loaded.data


class Loaded(NamedTuple):
    """What a recipe names, in memory."""

    model: Any
    tokenizer: Any
    data: TrainingData


def load_recipe(recipe: Recipe, raw: RawData, arguments: Any) -> Loaded:
    """Load the model of a recipe, its tokenizer, and the data as sequences of the arguments' length."""
    tokenizer, data = encode(recipe, raw, arguments)
    return Loaded(load_recipe_model(recipe), tokenizer, data)


def encode(recipe: Recipe, raw: RawData, arguments: Any) -> tuple[Any, TrainingData]:
    """Load a recipe's tokenizer, and make sequences of its data."""
    tokenizer = load_recipe_tokenizer(recipe)
    return tokenizer, prepare_data(raw, recipe.data, tokenizer, arguments.max_length, recipe.seed)


def load_recipe_tokenizer(recipe: Recipe) -> Any:
    """Load the tokenizer of a recipe: that of the adapter that it goes on from, if that has one, or of the base."""
    adapter = recipe.model.adapter
    tokenizer = load_tokenizer(recipe.model.name if adapter is None else find_adapter(adapter).tokenizer)
    set_chat_template(tokenizer, recipe.model.chat_template)
    return tokenizer


def load_recipe_model(recipe: Recipe) -> Any:
    """Load the base model of a recipe, with the adapter that it goes on from, if it does."""
    section = recipe.model
    model = load_model(section.name, section.dtype, section.quantization, section.config)
    adapter = None if section.adapter is None else find_adapter(section.adapter).adapter
    return model if adapter is None else put_on(model, adapter, trained=True)


def run(recipe: Recipe, raw: RawData, arguments: Any, folder: Path, doctor: bool) -> dict[str, Any]:
    """Evaluate, train, evaluate again, and write the results into a folder that `open_run` has made ready."""
    trainer, data = load(recipe, raw, arguments)
    return run_trainer(recipe, trainer, data, folder, doctor, lambda: evaluate(trainer).to_dict(), draw_loss_curve)


def run_trainer(
    recipe: Recipe,
    trainer: Any,
    data: TrainingData,
    folder: Path,
    doctor: bool,
    measure: Callable[[], dict[str, Any]],
    draw: Callable[[Path, dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure, train, measure again, write the results and return what metrics.json holds.

    Args:
        recipe: What is run.
        trainer: One of TRL's, which has not trained yet.
        data: What it was given.
        folder: The run's output folder.
        doctor: Whether to examine and rehearse the run first.
        measure: Measures the model on held-out data, for metrics.json.
        draw: Draws the run's picture from these metrics.

    Returns:
        The metrics.
    """
    on_main(lambda: check_inputs(folder, {**_token_inputs(data), **_adapter_inputs(recipe)}))
    use_engine(trainer)
    follow_earlier_start(trainer, folder)
    if doctor and not shards(trainer):  # other ranks than 0 may hold no weights yet
        examined(trainer, recipe, folder, data)
    before = measured_first(trainer, folder / BEFORE, measure)
    meter = StepMeter()
    trainer.add_callback(meter)
    train(trainer, recipe.seed, on_main(lambda: for_engine(trainer, last_complete(folder), shards(trainer))))
    metrics = _metrics(recipe, trainer, data, before(), measure(), meter)
    chats = trainer.processing_class if _has_own_template(recipe) else None
    adapter = adapter_state(trainer)

    stage("writing the adapter")

    def write() -> None:
        write_folder(folder / ADAPTER, lambda temporary: _save(trainer.model, adapter, chats, temporary))
        draw(folder / CURVE, metrics)
        discard(folder / CARD)  # TRL's model card tells how to load a whole model, which is not what lies here
        write_json(folder / METRICS, metrics)

    on_main(write)
    return metrics


def _has_own_template(recipe: Recipe) -> bool:
    """Whether the adapter's chat template is not the base model's, so that the tokenizer has to lie beside it."""
    adapter = recipe.model.adapter
    return bool(recipe.model.chat_template) or (adapter is not None and find_adapter(adapter).brings_tokenizer)


def _save(model: Any, adapter: dict[str, Any] | None, tokenizer: Any | None, folder: Path) -> None:
    model.save_pretrained(folder, state_dict=adapter, selected_adapters=[model.active_adapter])
    if tokenizer is not None:  # its chat template is not the base model's
        tokenizer.save_pretrained(folder)


def make_trainer(
    recipe: Recipe, arguments: Any, model: Any, tokenizer: Any, data: TrainingData, kind: Any = None
) -> Any:
    """Put model, method and data into one of TRL's trainers, whose model then has the adapter.

    A PacaError if the method cannot be applied to the model, or the arguments do not go together.

    Args:
        recipe: What is run.
        arguments: The config of that trainer.
        model: The base model, or one with the adapter that is trained on.
        tokenizer: Of the model.
        data: What to train on, and what is held out.
        kind: The trainer's class; `SFTTrainer` when omitted.

    Returns:
        The trainer.
    """
    from transformers import EarlyStoppingCallback
    from trl import SFTTrainer

    method = recipe.method
    made = None if recipe.model.adapter is not None else method_config(method.name, method.config)
    with refusals_explained(method.name, recipe.model.name), columns_of_embedded(made) as config:
        if config is not None:
            check_targets(model, config)
        trainer = (kind or SFTTrainer)(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            processing_class=tokenizer,
            peft_config=config,
        )
    if recipe.training.get("optim") == MUON:
        use_muon(trainer)
    if recipe.lean:
        make_lean(trainer.model)
    stopping = recipe.early_stopping
    if stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(stopping.patience, stopping.threshold))
    show_losses(trainer)
    return trainer


def _metrics(
    recipe: Recipe,
    trainer: Any,
    data: TrainingData,
    before: dict[str, Any],
    after: dict[str, Any],
    meter: StepMeter,
) -> dict[str, Any]:
    return {
        "before": before,
        "after": after,
        "held_out": {"sequences": len(data.held_out), "total": data.held_out_total},
        "tokens_per_second": meter.tokens_per_second,
        "peak_bytes": meter.peak_bytes,
        "tokens": trainer.state.num_input_tokens_seen,
        **run_metrics(recipe, trainer),
    }
