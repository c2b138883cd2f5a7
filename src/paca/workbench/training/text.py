"""Runs a recipe on TRL's `SFTTrainer`: evaluates, trains, evaluates again, and writes all results.

A process that is killed at any moment loses at most the steps since the last checkpoint. Resumed, it ends with the
same adapter file, bit for bit, as a run that was never interrupted: Trainer restores optimizer, schedule, order of the
data and random numbers, and nothing here draws a random number between the seed and the first step.
"""

from pathlib import Path
from typing import Any, NamedTuple

from paca.workbench.base.files import discard, write_folder, write_json
from paca.workbench.base.processes import on_main
from paca.workbench.base.progress import show_losses
from paca.workbench.data.chat_templates import set_chat_template
from paca.workbench.data.prepare import RawData, TrainingData, prepare_data, read_data
from paca.workbench.methods.registry import method_config, refusals_explained
from paca.workbench.methods.targets import check_targets
from paca.workbench.models.embedded_columns import columns_of_embedded
from paca.workbench.models.lean import make_lean
from paca.workbench.models.load import load_model, load_tokenizer
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.text_arguments import training_arguments
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
        f"{part} sequences that the tokenizer makes of the same rows": digest_of_tokens(sequences)
        for part, sequences in made.items()
    }


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
    """Load the base model of a recipe, its tokenizer, and the data as sequences of the arguments' length."""
    tokenizer = load_tokenizer(recipe.model.name)
    set_chat_template(tokenizer, recipe.model.chat_template)
    data = prepare_data(raw, recipe.data, tokenizer, arguments.max_length, recipe.seed)
    model = load_model(recipe.model.name, recipe.model.dtype, recipe.model.quantization, recipe.model.config)
    return Loaded(model, tokenizer, data)


def run(recipe: Recipe, raw: RawData, arguments: Any, folder: Path, doctor: bool) -> dict[str, Any]:
    """Evaluate, train, evaluate again, and write the results into a folder that `open_run` has made ready."""
    trainer, data = load(recipe, raw, arguments)
    on_main(lambda: check_inputs(folder, _token_inputs(data)))
    use_engine(trainer)
    follow_earlier_start(trainer, folder)
    if doctor and not shards(trainer):  # other ranks than 0 may hold no weights yet
        examined(trainer, recipe, folder, data)
    before = measured_first(trainer, folder / BEFORE, lambda: evaluate(trainer).to_dict())
    meter = StepMeter()
    trainer.add_callback(meter)
    train(trainer, recipe.seed, on_main(lambda: for_engine(trainer, last_complete(folder), shards(trainer))))
    metrics = _metrics(recipe, trainer, data, before(), meter)
    chats = trainer.processing_class if recipe.model.chat_template else None
    adapter = adapter_state(trainer)
    on_main(lambda: _write(folder, trainer.model, adapter, metrics, chats))
    return metrics


def _write(
    folder: Path, model: Any, adapter: dict[str, Any] | None, metrics: dict[str, Any], tokenizer: Any | None
) -> None:
    write_folder(folder / ADAPTER, lambda temporary: _save(model, adapter, tokenizer, temporary))
    draw_loss_curve(folder / CURVE, metrics)
    discard(folder / CARD)  # TRL's model card tells how to load a whole model, which is not what lies here
    write_json(folder / METRICS, metrics)


def _save(model: Any, adapter: dict[str, Any] | None, tokenizer: Any | None, folder: Path) -> None:
    model.save_pretrained(folder, state_dict=adapter)
    if tokenizer is not None:  # its chat template is not the base model's
        tokenizer.save_pretrained(folder)


def make_trainer(recipe: Recipe, arguments: Any, model: Any, tokenizer: Any, data: TrainingData) -> Any:
    """Put model, method and data into TRL's trainer, whose model then has the adapter.

    A PacaError if the method cannot be applied to the model, or the arguments do not go together.
    """
    from transformers import EarlyStoppingCallback
    from trl import SFTTrainer

    method = recipe.method
    with (
        refusals_explained(method.name, recipe.model.name),
        columns_of_embedded(method_config(method.name, method.config)) as config,
    ):
        check_targets(model, config)
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            processing_class=tokenizer,
            peft_config=config,
        )
    if recipe.lean:
        make_lean(trainer.model)
    stopping = recipe.early_stopping
    if stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(stopping.patience, stopping.threshold))
    show_losses(trainer)
    return trainer


def _metrics(
    recipe: Recipe, trainer: Any, data: TrainingData, before: dict[str, Any], meter: StepMeter
) -> dict[str, Any]:
    return {
        "before": before,
        "after": evaluate(trainer).to_dict(),
        "held_out": {"sequences": len(data.held_out), "total": data.held_out_total},
        "tokens_per_second": meter.tokens_per_second,
        "peak_bytes": meter.peak_bytes,
        "tokens": trainer.state.num_input_tokens_seen,
        **run_metrics(recipe, trainer),
    }
