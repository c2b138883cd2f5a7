"""A pytest plugin that puts `PacaConfig` in the place of the methods of PEFT's own tests.

PEFT's tests are tables of methods: `@pytest.mark.parametrize("model_id, config_cls, config_kwargs", …)`. Every row of
another method becomes one of PaCA's, with the layers and options of that row which PaCA knows; of rows that are then
equal one stays. Tests that no table feeds are about a method's own things and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytest
from peft import PeftConfig, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from paca import PacaConfig

# Their layers have no weight with columns, or the config doesn't name layers at all.
NOT_OF_WEIGHTS = {"LNTuningConfig", "TrainableTokensConfig", "OSFConfig", "ShadowConfig", "AdaptionPromptConfig"}
METHODS = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}

# What a row says beside its method, in words that mean the same in PaCA.
SHARED = (
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "bias", "task_type", "inference_mode", "base_model_name_or_path", "revision"),
)
# What a row is about, if PaCA has nothing of the kind.
UNKNOWN = ("trainable_token_indices", "alora_invocation_tokens")

NOT_PACAS = {
    "test_add_weighted_adapter": "PaCA has no weighted combinations of adapters",
    "test_default_target_modules": "sets the table of LoRA's and DeLoRA's usual layers",
}

PACAS: set[str] = set()  # the tests whose table of methods says PaCA now


class CannotSay(Exception):
    """A row that PaCA has no words for."""


def adapts_weights(config_class: type) -> bool:
    """Whether a method changes the weights of layers that its configuration names."""
    return not issubclass(config_class, PromptLearningConfig) and config_class.__name__ not in NOT_OF_WEIGHTS


def translated(options: dict[str, Any]) -> dict[str, Any]:
    """A method's options as PaCA's, two connections in each layer, scaled by 2."""
    if any(options.get(name) is not None for name in UNKNOWN):
        raise CannotSay
    if any(not is_expert_weight(name) for name in options.get("target_parameters") or ()):
        raise CannotSay
    shared = {name: options[name] for name in SHARED if options.get(name) not in (None, "none")}
    shared.update(r=2, paca_alpha=4, clamp_rank=True)
    if shared.get("bias", "").endswith("_only"):
        shared["bias"] = "paca_only"
    if any(name.startswith("init_") and name.endswith("weights") and not options[name] for name in options):
        shared["init_weights"] = False
    return shared


def is_expert_weight(name: str) -> bool:
    """Whether a parameter is one of those that PaCA's `target_parameters` is for."""
    return "experts" in name


def substituted(value: Any) -> Any:
    """One cell of a row."""
    if isinstance(value, type) and issubclass(value, PeftConfig) and value is not PacaConfig:
        if not adapts_weights(value):
            raise CannotSay
        return PacaConfig
    if isinstance(value, PeftConfig):
        substituted(type(value))
        options = {field.name: getattr(value, field.name) for field in fields(value)}
        return PacaConfig(**translated({name: option for name, option in options.items() if option is not None}))
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return translated(value)
    return "paca" if isinstance(value, str) and value.split("+")[0] in METHODS else value


def is_of_a_method(value: Any) -> bool:
    """Whether a cell names one of PEFT's methods."""
    return isinstance(value, PeftConfig) or (isinstance(value, type) and issubclass(value, PeftConfig))


def cells_of(row: Any, columns: int) -> list[Any]:
    """What a row has in each column; marks on it (`pytest.param`) are for the method that stood there."""
    if hasattr(row, "marks"):
        return list(row.values)
    return list(row) if columns > 1 else [row]


def paca_rows(names: list[str], rows: Iterable[Any]) -> list[Any] | None:
    """A table's rows for PaCA, each once; None for a table that has none."""
    found: dict[str, Any] = {}
    for row in rows:
        cells = cells_of(row, len(names))
        if not any(map(is_of_a_method, cells)):
            return None
        try:
            cells = [substituted(cell) for cell in cells]
        except CannotSay:
            continue
        said = repr([cell for name, cell in zip(names, cells, strict=True) if name != "test_name"])
        found.setdefault(said, cells if len(names) > 1 else cells[0])
    return list(found.values()) or None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the tables of a test's marks pass through `paca_rows`."""
    parametrize = metafunc.parametrize

    def with_paca(argnames: Any, argvalues: Any, *args: Any, ids: Any = None, **kwargs: Any) -> None:
        names = [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else list(argnames)
        rows = list(argvalues)
        substitutes = paca_rows(names, rows)
        if substitutes is not None:
            PACAS.add(metafunc.definition.nodeid)
            rows, ids = substitutes, None
        parametrize(argnames, rows, *args, ids=ids, **kwargs)

    metafunc.parametrize = with_paca


def pytest_configure(config: pytest.Config) -> None:
    """Name PEFT's own marks, which its tests would be warned of."""
    for name in ("regression", "single_gpu_tests", "multi_gpu_tests", "bitsandbytes", "skipf"):
        config.addinivalue_line("markers", name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no table feeds."""
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid.split("[")[0] not in PACAS])
    items[:] = [item for item in items if item.nodeid.split("[")[0] in PACAS]
