"""What a recipe's `training` and `method` keys become where the task is image classification."""

from collections.abc import Mapping, Sequence
from typing import Any

from paca.workbench.base.schema import class_problems
from paca.workbench.base.trainer_arguments import REFUSED_KEYS, library_keys, own_key_problems, usual_arguments
from paca.workbench.methods.registry import known_methods

# Keys of `TrainingArguments` that would turn nothing here, or break resuming, and what to type instead.
REFUSED_TRAINING_KEYS = {
    **REFUSED_KEYS,
    "include_num_input_tokens_seen": "images are always counted, for metrics.json",
    "remove_unused_columns": "a batch holds nothing but pixels and classes",
    "label_names": "a batch's classes are its labels",
    "load_best_model_at_end": "the last state is what is measured and saved",
}


def image_training_arguments(training: Mapping[str, Any], output_dir: str, seed: int) -> Any:
    """Make `TrainingArguments` from a recipe's `training` keys, which win over the defaults here and there."""
    from transformers import TrainingArguments

    fixed = {
        "include_num_input_tokens_seen": "all",  # values of `pixel_values`, a fixed number per image
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    return TrainingArguments(
        **{**usual_arguments(training), **library_keys(training), **fixed, "output_dir": output_dir, "seed": seed}
    )


def image_training_problems(training: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a recipe's `training` keys, one message per problem."""
    from transformers import TrainingArguments

    return class_problems(
        "training",
        library_keys(training),
        TrainingArguments,
        REFUSED_TRAINING_KEYS,
        lambda: image_training_arguments(training, "unused", 0),
        own_key_problems(training),
    )


def image_method_config(name: str, config: Mapping[str, Any], whole: Sequence[str]) -> Any:
    """Make a PEFT config for an image classifier.

    The modules in `whole`, such as a new head, are trained whole and saved with the adapter, besides
    `modules_to_save`.
    """
    saved = [*whole, *(entry for entry in config.get("modules_to_save") or () if entry not in whole)]
    return known_methods()[name](**{**config, "modules_to_save": saved})
