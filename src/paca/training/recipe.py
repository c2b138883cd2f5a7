"""A recipe: one YAML file with the base model, the method and its config, the data, and the trainer's arguments.

Everything is checked before a model or a data set is touched, and all problems are reported at once.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from paca.errors import PacaError
from paca.training import yaml_scalars
from paca.training.quantization import quantization_problems
from paca.training.schema import dotted, suggestion, unknown_keys, wrong_types
from paca.training.tasks import IMAGES, TASKS, TEXT
from paca.training.trainer_arguments import method_problems
from paca.training.vision.section import ImagesSection, images_problems

DTYPES = ("auto", "float32", "bfloat16", "float16")

Section = TypeVar("Section")


@dataclass(frozen=True)
class ModelSection:
    """Which base model, and in which precision.

    Args:
        name: `smollm2-135m-instruct` (embedded), a local folder, or a name on the Hugging Face Hub.
        dtype: `auto` is the precision that the model was saved in.
        quantization: `nf4`, `fp4` or `int8`, or a mapping of `BitsAndBytesConfig`'s arguments; not quantized when
            omitted. 4-bit layers compute in `dtype`.
    """

    name: str
    dtype: str = "auto"
    quantization: str | dict[str, Any] | None = None


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
        train: A built-in (`python-reference`), a file, a list of files, a folder, or a data set's name on the Hub.
        eval: Held-out data, named like `train`. Without it, part of `train` is held out.
        holdout_every: Hold out one row of `train` in so many: 10 holds out the 1st, 11th, 21st. A plain text file has
            blocks of `training.max_length` tokens for rows.
        eval_limit: Evaluate at most this many held-out sequences, evenly spread; all of them when omitted.
        subset: The configuration of a data set that has several.
        train_split: Which split of a data set `train` is.
        eval_split: Which split of a data set `eval` is.
    """

    train: str | list[str]
    eval: str | list[str] | None = None
    holdout_every: int | None = None
    eval_limit: int | None = None
    subset: str | None = None
    train_split: str = "train"
    eval_split: str = "test"


@dataclass(frozen=True)
class Recipe:
    """One run of fine-tuning.

    Args:
        model: The base model.
        data: Training and held-out data.
        output_dir: The folder that the run writes to.
        method: The PEFT method.
        training: Fields of TRL's `SFTConfig`, and thereby of `TrainingArguments`; for images, of the latter alone.
        seed: Fixes the choice of connections, the order of the data and dropout.
        task: `text` or `image-classification`.
        images: How images reach the model, where the task is to classify them.
    """

    model: ModelSection
    data: DataSection
    output_dir: str
    method: MethodSection = field(default_factory=MethodSection)
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 42
    task: str = TEXT
    images: ImagesSection = field(default_factory=ImagesSection)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as YAML spells it; `read_recipe` reads the same recipe back."""
        spelled = dataclasses.asdict(self)
        spelled["method"] = {"name": self.method.name, **self.method.config}
        if self.task == TEXT:
            del spelled["task"], spelled["images"]
        return spelled


def find_recipe(name: str) -> Path:
    """Find a recipe file: a path as it stands, or the name of one that ships with the package.

    Args:
        name: `my/recipe.yaml`, or for instance `smollm2-python-reference`.

    Returns:
        The path of an existing file.

    Raises:
        PacaError: If there is none; names the near files and the recipes that ship.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    bare = name.removesuffix(".yaml")
    if bare in shipped:
        return shipped[bare]
    from paca.training.documents import near_files

    raise PacaError(
        f"There is no recipe file {name!r}{near_files(Path(name))}. Give a path, or one of the recipes that come with "
        f"paca: {', '.join(sorted(shipped)) or 'none found'}."
    )


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with paca, by name: from the installed package, or from a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def read_recipe(path: Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> Recipe:
    """Read a recipe file, apply overrides, and check everything.

    Args:
        path: The YAML file.
        overrides: `key=value` with a dotted key and a YAML scalar: `training.max_steps=5`.
        output_dir: Wins over the file's `output_dir` and over an override of it.

    Returns:
        A recipe that passed every check which needs neither model nor data.

    Raises:
        PacaError: With all problems at once.
    """
    try:
        content = yaml_scalars.parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PacaError(f"The recipe {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise PacaError(f"The recipe {path} must hold keys such as `model:` and `data:`, got {content!r}.")
    problems = apply_overrides(content, overrides)
    if output_dir is not None:
        content["output_dir"] = output_dir
    recipe = _build_recipe(content, problems)
    if recipe is None or problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise PacaError(f"The recipe {path} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n{listed}")
    return recipe


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set dotted keys in a recipe's content, in place.

    Args:
        content: What the YAML file holds.
        overrides: `key=value` each.

    Returns:
        One message per override that makes no sense.
    """
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"{override!r} is not an override; write key=value, such as training.max_steps=5")
            continue
        try:
            value = yaml_scalars.parse(text)
        except yaml.YAMLError as error:
            problems.append(f"the value of {override!r} is not valid YAML: {error}")
            continue
        problems += _set_dotted(content, key, value)
    return problems


def _set_dotted(content: dict[str, Any], key: str, value: Any) -> list[str]:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        child = content.setdefault(parent, {})
        if not isinstance(child, dict):
            name = ".".join(parents[: depth + 1])
            return [f"{key} cannot be set: {name} is {child!r}, which has no keys of its own"]
        content = child
    content[last] = value
    return []


def _build_recipe(content: Mapping[str, Any], problems: list[str]) -> Recipe | None:
    """Build what can be built, and add every problem that is found on the way."""
    problems += unknown_keys("", content, {spec.name for spec in dataclasses.fields(Recipe)})
    given = {key: _mapping(content, key, problems) for key in ("model", "data", "method", "training", "images")}
    config = {key: value for key, value in given["method"].items() if key != "name"}
    named = {key: value for key, value in given["method"].items() if key == "name"}
    model = _build_section(ModelSection, "model", given["model"], problems)
    data = _build_section(DataSection, "data", given["data"], problems)
    method = _build_section(MethodSection, "method", {**named, "config": config}, problems)
    images = _build_section(ImagesSection, "images", given["images"], problems)
    plain = {key: content[key] for key in ("output_dir", "seed", "task") if key in content}
    problems += wrong_types("", plain, get_type_hints(Recipe))
    if "output_dir" not in content:
        problems.append("output_dir is missing: name the folder to write to, or pass --output DIR")
    problems += _value_problems(model, data)
    problems += _task_problems(content, model, images, given["training"])
    problems += method_problems(method.name, method.config) if method else []
    if model is None or data is None or method is None or images is None or problems:
        return None
    return Recipe(model=model, data=data, method=method, training=given["training"], images=images, **plain)


def _mapping(content: Mapping[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} = {value!r}: expected keys and values, got {type(value).__name__}")
        return {}
    return value


def _build_section(cls: type[Section], where: str, given: Mapping[str, Any], problems: list[str]) -> Section | None:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    found = unknown_keys(where, given, [spec.name for spec in fields])
    found += wrong_types(where, given, get_type_hints(cls))
    found += [
        f"{dotted(where, spec.name)} is missing"
        for spec in fields
        if spec.default is dataclasses.MISSING
        and spec.default_factory is dataclasses.MISSING
        and spec.name not in given
    ]
    problems += found
    return None if found else cls(**given)


def _task_problems(
    content: Mapping[str, Any], model: ModelSection | None, images: ImagesSection | None, training: Mapping[str, Any]
) -> list[str]:
    task = content.get("task", TEXT)
    if task not in TASKS:
        return [f"task = {task!r}: expected one of {', '.join(TASKS)}{suggestion(str(task), TASKS)}"]
    problems = TASKS[task].training_problems(training)
    if task == IMAGES:
        problems += images_problems(images) if images else []
        if model and model.quantization is not None:
            problems.append(f"model.quantization = {model.quantization!r}: image classifiers are not quantized")
    elif "images" in content:
        problems.append(f"images: a recipe whose task is {task} has none; add task: {IMAGES}")
    return problems


def _value_problems(model: ModelSection | None, data: DataSection | None) -> list[str]:
    problems = []
    if model and model.dtype not in DTYPES:
        problems.append(f"model.dtype = {model.dtype!r}: expected one of {', '.join(DTYPES)}")
    problems += quantization_problems(model.quantization) if model else []
    if data and data.holdout_every is not None and data.holdout_every < 2:
        problems.append(f"data.holdout_every = {data.holdout_every}: expected at least 2; 10 holds out every tenth")
    if data and data.eval_limit is not None and data.eval_limit < 1:
        problems.append(f"data.eval_limit = {data.eval_limit}: expected at least 1; leave it out to evaluate all")
    if data and (data.eval is None) == (data.holdout_every is None):
        wrong = "neither is given" if data.eval is None else "both are given"
        problems.append(
            f"data.eval and data.holdout_every: {wrong}, expected one of them; "
            "data.holdout_every=10 holds out every tenth row of data.train"
        )
    return problems


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List what differs between two recipes as `Recipe.to_dict` spells them.

    Args:
        old: The recipe that a run was started with.
        new: The recipe that is asked for now.

    Returns:
        One line per dotted key, with both values; `output_dir` is not compared, since a run's folder may be moved.
    """
    before, after = _flatten(old), _flatten(new)
    keys = [key for key in {**before, **after} if key != "output_dir"]
    return [
        f"{key} was {before.get(key, 'not set')!r}, now {after.get(key, 'not set')!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _flatten(content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = dotted(where, os.fspath(key))
        flat.update(_flatten(value, name) if isinstance(value, dict) else {name: value})
    return flat
