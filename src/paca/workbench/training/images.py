"""Runs a recipe whose task is image classification on transformers' `Trainer`, as `text.py` runs text.

What it promises about interruptions holds here as well: nothing draws a random number between the seed and the first
step, and how an image is varied depends on seed, epoch and position alone.
"""

from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from paca.errors import PacaError
from paca.workbench.base.files import write_folder, write_json
from paca.workbench.base.processes import world_size
from paca.workbench.base.progress import show_losses
from paca.workbench.base.trainer_arguments import MUON
from paca.workbench.methods.muon import use_muon
from paca.workbench.models.lean import make_lean
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.training.checkpoints import last_complete
from paca.workbench.training.doctor.batch_size import follow_earlier_start
from paca.workbench.training.inputs import digest_of_rows
from paca.workbench.training.report import run_metrics
from paca.workbench.training.run_folder import ADAPTER, BEFORE, CURVE, METRICS, MISTAKES
from paca.workbench.training.stages import examined, measured_once, train
from paca.workbench.training.step_meter import StepMeter
from paca.workbench.vision.adapters import save_classes
from paca.workbench.vision.arguments import image_training_arguments
from paca.workbench.vision.data import ImageData, read_data
from paca.workbench.vision.measure import Answers, answer
from paca.workbench.vision.method import with_method
from paca.workbench.vision.models import load_classifier, pixel_format
from paca.workbench.vision.pixels import PixelDataset, PixelFormat, make_transform
from paca.workbench.vision.report import closing_lines as closing_lines
from paca.workbench.vision.report import describe_answers, draw_curves, draw_mistakes


def prepare(recipe: Recipe) -> tuple[ImageData, Any]:
    """Read a recipe's images, and make its `TrainingArguments`.

    A PacaError if the data do not allow the run, or several processes would train.
    """
    data = read_data(recipe.data, recipe.images)
    arguments = image_training_arguments(recipe.training, recipe.output_dir, recipe.seed)
    if world_size() > 1:
        raise PacaError(
            f"Image recipes are trained by one process; this launch has {world_size()}. Start it without torchrun or "
            "accelerate launch."
        )
    return data, arguments


def inputs(data: ImageData) -> dict[str, Any]:
    """Digest the images and their classes."""
    parts = {"training images": data.train, "held-out images": data.held_out}
    digests = {name: digest_of_rows(zip(part.labels, part.digests, strict=True)) for name, part in parts.items()}
    return {"classes": list(data.train.classes), **digests}


def load(recipe: Recipe, data: ImageData, arguments: Any) -> tuple[Any, None]:
    """Make a `Trainer` whose model bears the adapter; and None, where a task of text has the tokenized data."""
    return _load(recipe, data, arguments)[0], None


def _load(recipe: Recipe, data: ImageData, arguments: Any) -> tuple[Any, PixelFormat]:
    from transformers import set_seed

    set_seed(recipe.seed)  # of a new head: it is the same when a run is resumed or its adapter is loaded again
    classes = data.train.classes
    model = load_classifier(recipe.model.name, classes, recipe.model.dtype, recipe.images.weights)
    pixels = pixel_format(model, recipe.images.size)
    model = with_method(model, recipe.method, recipe.images.batch_norm, len(classes))
    if recipe.lean:
        make_lean(model)
    return make_trainer(recipe, arguments, model, data, pixels), pixels


def run(recipe: Recipe, data: ImageData, arguments: Any, folder: Path, doctor: bool) -> dict[str, Any]:
    """Evaluate, train, evaluate again, and write the results into a folder that `open_run` has made ready."""
    classes = data.train.classes
    trainer, pixels = _load(recipe, data, arguments)
    follow_earlier_start(trainer, folder)
    if doctor:
        examined(trainer, recipe, folder)
    before = measured_once(folder / BEFORE, lambda: describe_answers(answer(trainer), classes))
    meter = StepMeter()
    trainer.add_callback(meter)
    train(trainer, recipe.seed, last_complete(folder))
    answers = answer(trainer)
    metrics = _metrics(recipe, trainer, data, before, answers)
    metrics |= _measured_steps(meter, trainer, pixels)
    write_folder(folder / ADAPTER, lambda temporary: _save(trainer.model, temporary, classes, pixels))
    draw_curves(folder / CURVE, metrics)
    draw_mistakes(folder / MISTAKES, data.held_out, answers)
    write_json(folder / METRICS, metrics)
    return metrics


def make_trainer(recipe: Recipe, arguments: Any, model: Any, data: ImageData, pixels: PixelFormat) -> Any:
    """Put the model, and the images varied as the recipe says, into transformers' `Trainer`."""
    from transformers import Trainer

    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=default_collate,
        train_dataset=PixelDataset(data.train, make_transform(pixels, recipe.images.augment), recipe.seed),
        eval_dataset=PixelDataset(data.held_out, make_transform(pixels)),
    )
    if recipe.training.get("optim") == MUON:
        use_muon(trainer)
    show_losses(trainer)
    return trainer


def _save(model: Any, folder: Path, classes: tuple[str, ...], pixels: PixelFormat) -> None:
    model.save_pretrained(folder)
    save_classes(folder, classes, pixels)


def _measured_steps(meter: StepMeter, trainer: Any, pixels: PixelFormat) -> dict[str, Any]:
    values = 3 * pixels.size**2  # what Trainer counts as tokens of one image
    per_second = meter.tokens_per_second
    return {
        "images": trainer.state.num_input_tokens_seen // values,
        "images_per_second": None if per_second is None else per_second / values,
        "peak_bytes": meter.peak_bytes,
        "image_size": pixels.size,
    }


def _metrics(
    recipe: Recipe, trainer: Any, data: ImageData, before: dict[str, Any], answers: Answers
) -> dict[str, Any]:
    return {
        "before": before,
        "after": describe_answers(answers, data.train.classes),
        "held_out": {"images": len(data.held_out), "total": data.held_out_total},
        "skipped": [*data.train.skipped, *data.held_out.skipped],
        **run_metrics(recipe, trainer),
    }
