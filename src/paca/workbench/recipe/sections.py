"""The sections of a recipe, and what is wrong with the values in them that no annotation tells."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paca.workbench.base.messages import LONGEST_NAME, shown
from paca.workbench.base.schema import suggestion
from paca.workbench.data.chat_templates import TEMPLATES
from paca.workbench.data.formats import FORMATS
from paca.workbench.models.quantization import quantization_problems

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelSection:
    """Which base model, and in which precision.

    Args:
        name: `smollm2-135m-instruct` (embedded), a local folder, or a name on the Hugging Face Hub.
        dtype: `auto` is the precision that the model was saved in.
        quantization: `nf4`, `fp4` or `int8`, or a mapping of `BitsAndBytesConfig`'s arguments; not quantized when
            omitted. 4-bit layers compute in `dtype`.
        chat_template: How turns are written where the tokenizer says nothing of it, as that of a pretrained model:
            `plain`, or a file with a Jinja template. It is saved with the adapter.
        config: Fields of the model's configuration that are to be others than those that it was saved with, such as
            `rope_parameters` for sequences longer than it was trained on.
    """

    name: str
    dtype: str = "auto"
    quantization: str | dict[str, Any] | None = None
    chat_template: str | None = None
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class MethodSection:
    """Which PEFT method, with the fields of its config.

    Args:
        name: `paca`, `lora`, or any other name that PEFT knows.
        config: The fields of that method's config; in YAML they stand beside `name`.
    """

    name: str = "paca"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSection:
    """What to train on, and what to hold out.

    Args:
        train: A built-in (`python-reference`), a file, a folder, a data set's name on the Hub, or a list of these.
        eval: Held-out data, named like `train`. Without it, part of `train` is held out.
        holdout_every: Hold out one row of `train` in so many: 10 holds out the 1st, 11th, 21st. A plain text file has
            blocks of `training.max_length` tokens for rows.
        eval_limit: Evaluate at most this many held-out sequences, evenly spread; all of them when omitted.
        subset: The configuration of a data set that has several.
        train_split: Which split of a data set `train` is.
        eval_split: Which split of a data set `eval` is.
        path: `train` and `eval` are files and folders in this one.
        format: A name in `FORMATS`; told from the fields of the first row when omitted.
        weights: One for each entry of `train`, which are mixed in this proportion; one after another when omitted.
    """

    train: str | list[str]
    eval: str | list[str] | None = None
    holdout_every: int | None = None
    eval_limit: int | None = None
    subset: str | None = None
    train_split: str = "train"
    eval_split: str = "test"
    path: str | None = None
    format: str | None = None
    weights: list[float] | None = None


@dataclass(frozen=True)
class StoppingSection:
    """When training ends before its last step. Evaluations and checkpoints come at the same steps then.

    Args:
        patience: Stop after so many evaluations in a row that are no better than the best.
        threshold: By how much a loss must be lower to count as better.
    """

    patience: int
    threshold: float = 0.0


def model_problems(section: ModelSection) -> list[str]:
    """Say what is wrong with the values of a recipe's `model` section.

    Args:
        section: The section, its types checked already.

    Returns:
        One message per problem.
    """
    problems = quantization_problems(section.quantization)
    if not section.name or "\0" in section.name or len(section.name) > LONGEST_NAME:
        problems.append(f"model.name = {shown(section.name)}: expected a name or a folder")
    if section.dtype not in DTYPES:
        problems.append(f"model.dtype = {section.dtype!r}: expected one of {', '.join(DTYPES)}")
    template = section.chat_template
    if template is not None and template not in TEMPLATES and not Path(template).is_file():
        problems.append(
            f"model.chat_template = {template!r}: expected {', '.join(TEMPLATES)}, or a file with a Jinja template"
            f"{suggestion(template, TEMPLATES)}"
        )
    return problems


def data_problems(section: DataSection) -> list[str]:
    """Say what is wrong with the values of a recipe's `data` section.

    Args:
        section: The section, its types checked already.

    Returns:
        One message per problem.
    """
    problems = []
    if section.holdout_every is not None and section.holdout_every < 2:
        problems.append(f"data.holdout_every = {section.holdout_every}: expected at least 2; 10 holds out every tenth")
    if section.eval_limit is not None and section.eval_limit < 1:
        problems.append(f"data.eval_limit = {section.eval_limit}: expected at least 1; leave it out to evaluate all")
    if (section.eval is None) == (section.holdout_every is None):
        wrong = "neither is given" if section.eval is None else "both are given"
        problems.append(
            f"data.eval and data.holdout_every: {wrong}, expected one of them; "
            "data.holdout_every=10 holds out every tenth row of data.train"
        )
    problems += [
        f"data.{key} = {value!r}: expected at least one name"
        for key, value in (("train", section.train), ("eval", section.eval))
        if value == [] or value == ""
    ]
    if section.format is not None and section.format not in FORMATS:
        problems.append(
            f"data.format = {section.format!r}: expected one of {', '.join(FORMATS)}"
            f"{suggestion(section.format, FORMATS)}"
        )
    return problems + _weight_problems(section)


def _weight_problems(section: DataSection) -> list[str]:
    if section.weights is None:
        return []
    if not isinstance(section.train, list) or len(section.train) != len(section.weights):
        count = len(section.train) if isinstance(section.train, list) else 1
        return [f"data.weights has {len(section.weights)} numbers for {count} entries of data.train; give each one"]
    wrong = [weight for weight in section.weights if not (math.isfinite(weight) and weight > 0)]
    return [
        f"data.weights holds {weight!r}: expected numbers above 0; leave out what is not to be used"
        for weight in wrong[:1]
    ]


def stopping_defaults(training: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate at every checkpoint, and end with the best of them.

    Args:
        training: The recipe's `training` keys.

    Returns:
        Keys that hold where the recipe does not set them.
    """
    strategy = training.get("eval_strategy", training.get("save_strategy", "steps"))
    steps = {"eval_steps": training["save_steps"]} if strategy == "steps" and "save_steps" in training else {}
    return {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        **steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
    }


def stopping_problems(section: StoppingSection, training: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the values of a recipe's `early_stopping` section.

    Args:
        section: The section, its types checked already.
        training: The recipe's `training` keys.

    Returns:
        One message per problem.
    """
    problems = []
    if section.patience < 1:
        problems.append(f"early_stopping.patience = {section.patience}: expected at least 1 evaluation")
    if training.get("eval_strategy") in ("no", False):
        problems.append(
            "early_stopping: training.eval_strategy = no never evaluates; leave it out to evaluate at every checkpoint"
        )
    if section.threshold < 0:
        problems.append(f"early_stopping.threshold = {section.threshold}: expected 0 or more")
    return problems
