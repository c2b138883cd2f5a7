"""A recipe: one YAML file with the base model, the method and its config, the data, and the trainer's arguments.

Everything is checked before a model or a data set is loaded, and all problems are reported at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import paca
from paca.errors import PacaError
from paca.workbench.base import yaml
from paca.workbench.base.messages import one_line, shown, suggestion
from paca.workbench.base.schema import dotted, unknown_keys, wrong_types
from paca.workbench.data.formats import FORMATS
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS
from paca.workbench.data.section import DataSection, data_problems
from paca.workbench.methods.adapter import adapter_method
from paca.workbench.methods.registry import method_problems
from paca.workbench.methods.section import MethodSection
from paca.workbench.models.section import ModelSection, model_problems
from paca.workbench.recipe.data_files import file_problems
from paca.workbench.recipe.stopping import StoppingSection, stopping_defaults, stopping_problems
from paca.workbench.recipe.tasks import IMAGES, PREFERENCE, TEXT, TRAINING_PROBLEMS, training_problems
from paca.workbench.vision.section import ImagesSection, images_problems

Section = TypeVar("Section")
_LATER = {
    "": ("early_stopping",),
    "model": ("chat_template", "config", "adapter"),
    "data": ("path", "format", "weights"),
}


@dataclass(frozen=True)
class Recipe:
    """One run of fine-tuning.

    Args:
        model: The base model.
        data: Training and held-out data.
        output_dir: The folder that the run writes to.
        method: The PEFT method.
        training: Fields of TRL's `SFTConfig`, `DPOConfig` or `KTOConfig`, and thereby of `TrainingArguments`; for
            images, of the latter alone; and `lean`.
        seed: Fixes the choice of connections, the order of the data and dropout.
        task: `text`, `preference` or `image-classification`.
        images: How images reach the model, where the task is to classify them.
        early_stopping: When training ends before its last step; never when omitted.
    """

    model: ModelSection
    data: DataSection
    output_dir: str
    method: MethodSection = field(default_factory=MethodSection)
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 42
    task: str = TEXT
    images: ImagesSection = field(default_factory=ImagesSection)
    early_stopping: StoppingSection | None = None

    @property
    def lean(self) -> bool:
        """Whether modules get forwards that keep the least for backward."""
        return bool(self.training.get("lean", False))

    @property
    def all_training(self) -> dict[str, Any]:
        """The `training` keys, with those that other sections bring along."""
        brought = {} if self.early_stopping is None else stopping_defaults(self.training)
        return {**brought, **self.training}

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as YAML holds it; `read_recipe` reads the same recipe back."""
        content = dataclasses.asdict(self)
        content["method"] = {"name": self.method.name, **self.method.config}
        if self.task == TEXT:
            del content["task"]
        if self.task != IMAGES:
            del content["images"]
        # As a recipe that says nothing of them, so that runs which were started before they existed can be resumed.
        for section, keys in _LATER.items():
            part = content[section] if section else content
            for key in keys:
                if part[key] is None:
                    del part[key]
        return content


def find_recipe(name: str) -> Path:
    """Find a recipe file: a path as it stands, or the name of one that ships with the package.

    If there is none, a PacaError names the near files and the recipes that ship.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    bare = name.removesuffix(".yaml")
    if bare in shipped:
        return shipped[bare]
    from paca.workbench.data.documents import near_files

    if Path(name).is_dir():
        inside = sorted(Path(name).glob("*.yaml"))
        hint = f"; did you mean {str(inside[0])!r}?" if inside else ""
        raise PacaError(f"{name!r} is a folder, not a recipe file{hint}")
    is_bare = Path(name).name == name
    near = (suggestion(bare, shipped) if is_bare else "") or near_files(Path(name))
    raise PacaError(
        f"There is no recipe file {name!r}{near or '.'} Give a path, or one of the recipes that come with paca: "
        f"{', '.join(sorted(shipped)) or 'none found'}."
    )


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with paca, by name: from the installed package, or from a checkout."""
    package = Path(paca.__file__).resolve().parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def read_recipe(
    path: Path, overrides: Sequence[str] = (), output_dir: str | None = None, with_files: bool = False
) -> Recipe:
    """Read a recipe file, apply overrides, and check everything.

    Args:
        path: The YAML file.
        overrides: `key=value` with a dotted key and a YAML scalar: `training.max_steps=5`.
        output_dir: Wins over the file's `output_dir` and over an override of it.
        with_files: Where there are problems, read the local files of data too, and compare the names of layers with
            the model's, and report what is wrong there as well.

    Returns:
        A recipe that passed every check which needs neither model nor data.

    Raises:
        PacaError: With all problems at once.
    """
    try:
        content = yaml.parse(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise PacaError(f"The recipe {path} is not valid YAML: {one_line(error)}") from error
    except OSError as error:
        raise PacaError(f"The recipe {path} can't be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise PacaError(f"The recipe {path} must hold keys such as `model:` and `data:`, got {shown(content)}.")
    problems = apply_overrides(content, overrides)
    if output_dir is not None:
        content["output_dir"] = output_dir
    recipe = _build_recipe(content, problems, with_files)
    if recipe is None or problems:
        if len(problems) == 1:
            raise PacaError(f"The recipe {path} has 1 problem: {problems[0]}")
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise PacaError(f"The recipe {path} has {len(problems)} problems:\n{listed}")
    return recipe


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set dotted keys, `key=value` each, in a recipe's content, in place; one message per override that fails."""
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"{shown(override)} is not an override; write key=value, such as training.max_steps=5")
            continue
        try:
            value = yaml.parse(text)
        except ValueError as error:
            problems.append(f"the value of {shown(override)} is not valid YAML: {one_line(error)}")
            continue
        problems += _set_dotted(content, key, value)
    return problems


def _set_dotted(content: dict[str, Any], key: str, value: Any) -> list[str]:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        child = content.setdefault(parent, {})
        if not isinstance(child, dict):
            name = ".".join(parents[: depth + 1])
            return [f"{key} cannot be set: {name} is {shown(child)}, which has no keys of its own"]
        content = child
    content[last] = value
    return []


def _build_recipe(content: Mapping[str, Any], problems: list[str], with_files: bool) -> Recipe | None:
    """Build what can be built, and add every problem that is found on the way."""
    problems += unknown_keys("", content, {spec.name for spec in dataclasses.fields(Recipe)})
    sections = ("model", "data", "method", "training", "images", "early_stopping")
    given = {key: _mapping(content, key, problems) for key in sections}
    config = {key: value for key, value in given["method"].items() if key != "name"}
    named = {key: value for key, value in given["method"].items() if key == "name"}
    model = _build_section(ModelSection, "model", given["model"], problems)
    data = _build_section(DataSection, "data", given["data"], problems)
    method = _build_section(MethodSection, "method", {**named, "config": config}, problems)
    images = _build_section(ImagesSection, "images", given["images"], problems)
    stopping = (
        _build_section(StoppingSection, "early_stopping", given["early_stopping"], problems)
        if given["early_stopping"]
        else None
    )
    plain = {key: content[key] for key in ("output_dir", "seed", "task") if key in content}
    problems += wrong_types("", plain, get_type_hints(Recipe))
    if "output_dir" not in content:
        problems.append("output_dir is missing: name the folder to write to, or pass --output DIR")
    elif content["output_dir"] == "" or "\0" in str(content["output_dir"]):
        problems.append(f"output_dir = {content['output_dir']!r}: expected the name of a folder")
    problems += model_problems(model) if model else []
    formats = PREFERENCE_FORMATS if content.get("task") == PREFERENCE else FORMATS
    found = data_problems(data, formats) if data else []
    problems += found
    problems += stopping_problems(stopping, given["training"]) if stopping else []
    if isinstance(content.get("seed"), int) and not 0 <= content["seed"] < 2**32:
        problems.append(f"seed = {shown(content['seed'])}: expected a number from 0 to {2**32 - 1}")
    brought = {} if stopping is None or problems else stopping_defaults(given["training"])
    problems += _task_problems(content, model, images, {**brought, **given["training"]})
    if model and model.adapter is not None:
        method, wrong = adapter_method(model, given["method"])
    else:
        wrong = method_problems(method.name, method.config) if method else []
    problems += wrong
    if problems and with_files and model and method and not wrong:
        from paca.workbench.recipe.layer_names import layer_problems  # torch and transformers, for a recipe gone wrong

        problems += layer_problems(content.get("task", TEXT), model, method)
    if problems and with_files and data and images and not found:
        problems += file_problems(content.get("task", TEXT), data, images)
    if model is None or data is None or method is None or images is None or problems:
        return None
    return Recipe(
        model=model,
        data=data,
        method=method,
        training=given["training"],
        images=images,
        early_stopping=stopping,
        **plain,
    )


def _mapping(content: Mapping[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} = {shown(value)}: expected keys and values, got {type(value).__name__}")
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
    if task not in TRAINING_PROBLEMS:
        known = list(TRAINING_PROBLEMS)
        return [f"task = {shown(task)}: expected one of {', '.join(known)}{suggestion(str(task), known)}"]
    problems = training_problems(task, training)
    if task == IMAGES:
        problems += images_problems(images) if images else []
        if model and model.quantization is not None:
            problems.append(f"model.quantization = {model.quantization!r}: image classifiers are not quantized")
        if model and model.adapter is not None:
            problems.append(f"model.adapter = {model.adapter!r}: image classifiers begin with an adapter of their own")
        if content.get("early_stopping"):
            problems = ["early_stopping: image classifiers are trained to their last step; leave it out"]
    elif "images" in content:
        problems.append(f"images: a recipe whose task is {task} has none; add task: {IMAGES}")
    return problems
