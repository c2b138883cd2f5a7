"""What a recipe's `training` and `method` keys become: TRL's `SFTConfig` and a PEFT config.

The libraries are imported inside the functions: they take seconds, which `paca --help` must not cost.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from paca.workbench.base.messages import listing, shown, suggestion
from paca.workbench.base.schema import class_problems
from paca.workbench.base.trainer_arguments import REFUSED_KEYS, library_keys, own_key_problems, usual_arguments

# Keys of `SFTConfig` that would turn nothing here, or break resuming, and what to type instead.
REFUSED_TRAINING_KEYS = {
    **REFUSED_KEYS,
    "model_init_kwargs": "the recipe's model section says what is loaded and how",
    "assistant_only_loss": "the data decides: chat messages are trained on the assistant's turns only",
    "completion_only_loss": "the data decides: chat messages are trained on the assistant's turns only",
    "dataset_text_field": "rename the column to 'text'",
    "dataset_kwargs": "the recipe's data section says how the data is prepared",
    "dataset_num_proc": "the data is prepared in one process",
    "chat_template_path": "the model's own chat template is used",
    "eos_token": "the tokenizer's own is used",
    "pad_token": "the tokenizer's own is used",
    "include_num_input_tokens_seen": "tokens are always counted, for metrics.json",
}


def training_arguments(training: Mapping[str, Any], output_dir: str, seed: int) -> Any:
    """Make TRL's `SFTConfig` from a recipe's `training` keys, which win over the defaults here and in TRL."""
    from trl import SFTConfig

    return make_arguments(SFTConfig, training, output_dir, seed)


def make_arguments(config: Any, training: Mapping[str, Any], output_dir: str, seed: int) -> Any:
    """Make one of TRL's configs from `training` keys, with what is usual here where they say nothing."""
    defaults = {
        **usual_arguments(training),
        "ddp_broadcast_buffers": False,  # all ranks have the same, which is checked at the start
        "include_num_input_tokens_seen": "non_padding",
    }
    with warnings.catch_warnings():
        # `gradient_checkpointing`, which TRL sets by default, has a new name in late 5.x versions of transformers;
        # the old one works, and is known, in all of them.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
        return config(**{**defaults, **library_keys(training), "output_dir": output_dir, "seed": seed})


def training_problems(training: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a recipe's `training` keys, one message per problem."""
    from trl import SFTConfig

    return class_problems(
        "training",
        library_keys(training),
        SFTConfig,
        REFUSED_TRAINING_KEYS,
        lambda: training_arguments(training, "unused", 0),
        [*own_key_problems(training), *count_problems(training), *logger_problems(training.get("report_to"))],
    )


# Trainer divides by them, or cuts text into blocks of this many tokens.
_AT_LEAST = {
    "max_length": 2,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
}


def count_problems(training: Mapping[str, Any]) -> list[str]:
    """Say which counts among a recipe's `training` keys are too small to mean anything."""
    given = ((key, least, training.get(key)) for key, least in _AT_LEAST.items())
    return [
        f"training.{key} = {value}: expected at least {least}"
        for key, least, value in given
        if isinstance(value, (int, float)) and value < least
    ]


def logger_problems(report_to: Any) -> list[str]:
    """Say which names in `training.report_to` are unknown, or lack their package."""
    from transformers.integrations import integration_utils

    known = set(integration_utils.INTEGRATION_TO_CALLBACK)
    problems = []
    for name in report_to if isinstance(report_to, list) else [report_to]:
        if name in (None, "none", "all"):
            continue
        if name not in known:
            problems.append(
                f"training.report_to = {shown(name)}: there is no such logger"
                f"{suggestion(str(name)[:60], known) or listing(known, most=20)}"
            )
        elif not _is_installed(integration_utils, str(name)):
            problems.append(f"training.report_to = {name!r} needs a package that is not installed: pip install {name}")
    return problems


def _is_installed(integrations: Any, name: str) -> bool:
    """Ask transformers, whose checks are named after a logger or its first part: `is_comet_available`."""
    checks = (getattr(integrations, f"is_{part}_available", None) for part in (name, name.split("_")[0]))
    return next((check() for check in checks if check is not None), True)
