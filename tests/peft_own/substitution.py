"""A pytest plugin that puts `PacaConfig` in the place of the methods of PEFT's own tests.

Most of these are tables of methods: `@pytest.mark.parametrize("model_id, config_cls, config_kwargs", …)`. Every row of
another method becomes one of PaCA's, with those of its layers and options that PaCA knows as well; of rows that are
then equal one stays. In tests that no table feeds, and that say LoRA only to have a method, `LoraConfig` makes a
`PacaConfig`. What is about another method's own things is left out.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig, PeftConfig, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from paca import PacaConfig

METHODS = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}

# Methods whose rows are none of PaCA's: they name no layers with a weight, or don't start from the pretrained model.
OTHERS = {
    *("LNTuningConfig", "TrainableTokensConfig", "OSFConfig", "ShadowConfig", "AdaptionPromptConfig", "XLoraConfig"),
    *("AdaLoraConfig", "FourierFTConfig", "PolyConfig", "TinyLoraConfig", "VBLoRAConfig"),
}
# Options that PaCA has under the same name and with the same meaning.
SHARED = (
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "bias", "task_type", "inference_mode", "base_model_name_or_path", "revision"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out"),
)
# PaCA's `target_parameters` are fused expert weights of layouts that it knows; Llama 4's is none.
FUSED_EXPERTS = re.compile(r"(?<!feed_forward\.)experts\.")
UNKNOWN = ("trainable_token_indices", "alora_invocation_tokens")
OF_LORA = {"r", "lora_alpha", "lora_dropout", "init_lora_weights"}  # what of `LoraConfig` a test may say besides

# Signs that a test is about LoRA itself, and not only in need of a method.
LORAS_OWN = re.compile(
    r"lora_(?!alpha|dropout|only)\w|Lora(?!Config)|\blora\.|[\"']lora|\"LORA\"|\b(?!Lora|Auto)\w+Config\("
)
# Tests that would be chosen, and that say nothing about PaCA.
NOT_ABOUT_PACA = {
    "test_add_weighted_adapter": "adds adapters up with weights, which PaCA has no function for",
    "test_default_target_modules": "changes the table of the usual layers of the method's own package",
    "test_base_model_module_named_like_peft_prefix": "knows the prefixes of PEFT's methods only",
    "test_inject_adapter_in_model_rejects_shared_state": "of methods whose layers share parameters",
    "test_mixed_adapter_batches_mha_raises": "expects the name of LoRA's layer in a message",
    "test_mha_with_separate_qkv_embed_raises": "expects LoRA's words; PaCA's say which widths differ",
    "test_mha_gradients_set_correctly": "calls a method of LoRA's layer",
    "_merging_adapters": "adds adapters up with weights, which PaCA has no function for",
    "test_mha_exposes_attributes": "expects an output projection that no adapter is on; PaCA adapts it as well",
    "TestHotSwapping": "swaps LoRA's matrices",
    "TestScaling": "looks for LoRA's layers",
    "TestDisableInputDtypeCasting": "of an attribute of LoRA's layers; PaCA's multiply in any dtype",
    "TestRankAndAlphaPattern": "has layers of one connection, in which there is one rank",
    "TestWeightTying": "of an option of LoraConfig",
    "test_nb_params_": "counts LoRA's parameters",
    "test_peft_types_": "expects the name LORA",
    "test_inject_from_state_dict_low_cpu_mem_usage": "expects nothing but empty tensors; PaCA's connections are known",
    "test_no_infinite_recursion": "of PeftMixedModel, which knows PEFT's own methods only",
    "test_quantization_backend_is_set_and_repr": "of an attribute of PEFT's layers",
    "test_save_pretrained_with_runtime_config": "of LoRA's runtime_config",
    "test_lora_incompatible_mamba_modules": "of a check that PEFT makes for LoRA's relatives",
    "test_nemotron_h_has_defaults": "of the same check",
    "TestTransformersV5": "converts LoRA's files of older versions of transformers",
    "test_from_pretrained_cache_dir": "asks the Hub, for want of the model in another cache",
    "test_inject_from_state_dict_stable_diffusion": "asks the Hub for a pipeline",
}


class NoCounterpartError(Exception):
    """Something that PaCA has no words for."""


def translated(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A method's options as PaCA's."""
    if any(options.get(name) for name in UNKNOWN):
        raise NoCounterpartError
    if any(not FUSED_EXPERTS.search(name) for name in options.get("target_parameters") or ()):
        raise NoCounterpartError
    if "embed_tokens" in (options.get("target_modules") or ()):  # tied to the head, which PaCA refuses to part
        raise NoCounterpartError
    paca = {name: options[name] for name in SHARED if options.get(name) not in (None, "none")}
    if paca.get("bias", "").endswith("_only"):
        paca["bias"] = "paca_only"
    if any(re.fullmatch("init_.*weights", name) and options[name] is False for name in options):
        paca["init_weights"] = False
    return {"clamp_rank": True, **paca, **more}


def substituted(value: Any) -> Any:
    """A cell of a table, as PaCA has it."""
    if is_of_a_method(value):
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, PromptLearningConfig) or kind.__name__ in OTHERS:
            raise NoCounterpartError
        if kind is value:
            return PacaConfig
        value = {field.name: getattr(value, field.name) for field in fields(value)}
        return PacaConfig(**of_a_row(value))
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return of_a_row(value)
    return "paca" if isinstance(value, str) and value.split("+")[0] in METHODS else value


def of_a_row(options: dict[str, Any]) -> dict[str, Any]:
    """A row's options, scaled by two: eight connections in each layer, or half of the tests' hundred tokens."""
    rank = 50 if "emb" in (options.get("target_modules") or ()) else 8
    return translated(options, r=rank, paca_alpha=2 * rank)


def is_of_a_method(value: Any) -> bool:
    """Whether a cell names one of PEFT's methods."""
    return isinstance(value, PeftConfig) or (isinstance(value, type) and issubclass(value, PeftConfig))


def cells_of(row: Any, columns: int) -> list[Any]:
    """What a row has in each column; marks on it (`pytest.param`) are for the method that stood there."""
    if hasattr(row, "marks"):
        return list(row.values)
    return list(row) if columns > 1 else [row]


def paca_rows(names: list[str], rows: Iterable[Any]) -> list[Any]:
    """A table's rows for PaCA, each once; none of a table that isn't one of methods."""
    found: dict[str, Any] = {}
    for row in rows:
        cells = cells_of(row, len(names))
        if not any(map(is_of_a_method, cells)):
            return []
        try:
            cells = [substituted(cell) for cell in cells]
        except NoCounterpartError:
            continue
        said = repr([cell for name, cell in zip(names, cells, strict=True) if name != "test_name"])
        found.setdefault(said, cells if len(names) > 1 else cells[0])
    return list(found.values())


class InPlaceOfLora(LoraConfig):
    """What `LoraConfig` is in a test that names it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A `PacaConfig` with the same rank, scaling and layers."""
        alpha = kwargs.get("lora_alpha", 8)
        try:
            if not kwargs.keys() <= OF_LORA.union(SHARED):
                raise NoCounterpartError
            return PacaConfig(*args, **translated(kwargs, r=kwargs.get("r", 8), paca_alpha=alpha))
        except NoCounterpartError:
            pytest.skip("PaCA has no words for this configuration")


FROM_TABLES: set[str] = set()  # the tests whose table of methods says PaCA now


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the tables of a test's marks pass through `paca_rows`."""
    parametrize = metafunc.parametrize

    def with_paca(argnames: Any, argvalues: Any, *args: Any, ids: Any = None, **kwargs: Any) -> None:
        names = [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else list(argnames)
        rows = list(argvalues)
        own = paca_rows(names, rows)
        if own:
            FROM_TABLES.add(metafunc.definition.nodeid)
        parametrize(argnames, own or rows, *args, ids=None if own else ids, **kwargs)

    metafunc.parametrize = with_paca


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not about PaCA."""
    chosen = [item for item in items if (feeds_from_table(item) or names_lora(item)) and is_about_paca(item)]
    left = set(items) - set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = chosen


def is_about_paca(item: Any) -> bool:
    """Whether a test is not one of those that only look like it."""
    return not any(name in item.nodeid for name in NOT_ABOUT_PACA)


def feeds_from_table(item: Any) -> bool:
    """Whether PaCA came to a test by its table of methods."""
    return item.nodeid.split("[")[0] in FROM_TABLES


def names_lora(item: Any) -> bool:
    """Whether a test, with its fixtures and helpers, says LoRA only to have a method."""
    if not inspect.isfunction(item.function):
        return False
    test = without_comments(inspect.getsource(item.function))
    fixtures = [fixture[-1].func for fixture in item._fixtureinfo.name2fixturedefs.values()]
    called = ["setup_method", "setUp", *re.findall(r"self\.(\w+)\(", test)]
    helpers = [getattr(item.cls, name, None) for name in called]
    functions = [function for function in [*fixtures, *helpers] if inspect.isfunction(function)]
    return "LoraConfig(" in test + "".join(map(source_of, functions)) and not LORAS_OWN.search(test)


source_of = functools.cache(inspect.getsource)


def without_comments(source: str) -> str:
    """The code alone, without the line that names the function."""
    return re.sub(r"#.*|def .*?:\n", "", source)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    """While a test runs that names LoRA, its fixtures too, `LoraConfig` is `InPlaceOfLora`."""
    if feeds_from_table(item):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item.module, "LoraConfig", InPlaceOfLora, raising=False)
        return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Have no test ask the Hub, and name PEFT's own marks, of which pytest would warn."""
    importlib.import_module("tests.testing_utils").hub_online_once = nullcontext
    for name in ("regression", "single_gpu_tests", "multi_gpu_tests", "bitsandbytes", "skipf"):
        config.addinivalue_line("markers", name)
