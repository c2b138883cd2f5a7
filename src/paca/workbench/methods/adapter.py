"""The method of an adapter that a recipe trains on: `model.adapter`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import shown
from paca.workbench.base.schema import describe_difference
from paca.workbench.methods.registry import REFUSED_METHOD_KEYS, known_methods
from paca.workbench.methods.section import MethodSection
from paca.workbench.models.adapter_files import adapter_folder, may_be_same_model, read_config
from paca.workbench.models.section import ModelSection


def adapter_method(model: ModelSection, given: Mapping[str, Any]) -> tuple[MethodSection, list[str]]:
    """Return the method of the adapter that a recipe goes on from, and what is wrong with it, one message per problem.

    `given` is the recipe's own `method` section, which may only repeat what the adapter is.
    """
    try:
        folder = adapter_folder(Path(str(model.adapter)).expanduser())
        if folder is None:
            raise PacaError("there is no adapter; name a run's output folder or an adapter's folder")
        config = read_config(folder)
        method = _method(config)
    except PacaError as error:
        return MethodSection(), [f"model.adapter = {shown(model.adapter)}: {error}"]
    base, problems = config["base_model_name_or_path"], []
    if not may_be_same_model(base, model.name):
        problems.append(
            f"model.adapter = {shown(model.adapter)} was trained on {base!r}, and model.name is {model.name!r}: an "
            f"adapter goes with its own base; set model.name={base}"
        )
    own = {"name": method.name, **method.config}
    changed = describe_difference({key: own.get(key, "not set") for key in given}, given)
    if changed:
        problems.append(
            f"method: {'; '.join(changed)}; the adapter that model.adapter names brings its own method, so leave this "
            "section out"
        )
    return method, problems


def _method(config: Mapping[str, Any]) -> MethodSection:
    """The section of a saved configuration: its method's name, and the fields that are not at their defaults."""
    name = str(config.get("peft_type")).lower()
    cls = known_methods().get(name)
    if cls is None:
        raise PacaError(f"PEFT knows no method {name!r}")
    fields: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):
        default = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        value = config.get(spec.name, default)
        if spec.name not in (*REFUSED_METHOD_KEYS, "peft_version") and value != default:
            fields[spec.name] = sorted(value) if spec.name == "target_modules" and isinstance(value, list) else value
    return MethodSection(name, fields)
