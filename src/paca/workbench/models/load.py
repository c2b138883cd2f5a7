"""Loads base models and tokenizers, the embedded default among them."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.tuner.layers.bnb_cpu import apply_cpu_workarounds
from paca.workbench.base.messages import one_line, suggestion
from paca.workbench.base.waiting import stage
from paca.workbench.data.documents import missing_path, near_files
from paca.workbench.models.embedded import EMBEDDED, hub_place
from paca.workbench.models.quantization import quantization_config


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of an embedded model, a local folder or a name on the Hub; a PacaError if none is there."""
    from transformers import AutoTokenizer

    return _load(name, AutoTokenizer, {})


def empty_model(name: str, config: Mapping[str, Any] | None = None) -> Any:
    """Make a base model without weights, of what lies on this machine; the Hub is not asked.

    Args:
        name: As `load_model` takes it.
        config: Likewise.

    Returns:
        A causal language model on the meta device.

    Raises:
        PacaError: If there is no configuration of that name.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {**(config or {}), "local_files_only": True, "trust_remote_code": False}
    found = _load(name, AutoConfig, options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(found)


def load_model(
    name: str,
    dtype: str = "auto",
    quantization: str | Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Any:
    """Load a base model that can be trained, saved and merged into.

    Args:
        name: An embedded model's name, a local folder, or a name on the Hub.
        dtype: `auto` or a torch dtype's name.
        quantization: What a recipe's `model.quantization` may say; None for plain weights.
        config: Fields of the model's configuration to override.

    Returns:
        A causal language model. An embedded model's `name_or_path` is its name on the Hub, which adapters trained on
        it name as their base for others to load.

    Raises:
        PacaError: If there is none of that name.
    """
    import transformers

    stage("loading the model")
    options: dict[str, Any] = {**(config or {}), "dtype": dtype}
    if name in EMBEDDED and hasattr(transformers, "GgufConfig"):
        # Weights that stay in GGUF's blocks can't be trained; and a model that transformers has marked as quantized
        # can't be saved, even when no kernel was found and all its weights were unpacked.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if quantization is not None and name not in EMBEDDED:
        options["quantization_config"] = quantization_config(quantization, dtype)
    model = _load(name, transformers.AutoModelForCausalLM, options)
    forget_gguf(model)
    if quantization is not None and name in EMBEDDED:
        model = quantized_copy(model, dtype, quantization)
    for module in model.modules():
        apply_cpu_workarounds(module)  # before the evaluation that comes before training, too
    if name in EMBEDDED:
        model.name_or_path = model.config._name_or_path = EMBEDDED[name].hub or name
    return model


def quantized_copy(model: Any, dtype: str, quantization: str | Mapping[str, Any]) -> Any:
    """The same model quantized, as `load_model` would.

    transformers quantizes only what it loads, and not from GGUF, hence the folder in between.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model.save_pretrained(folder)
        config = quantization_config(quantization, dtype)
        loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=model.dtype)
        if not torch.cuda.is_available():  # what was not quantized is still mapped from the file
            for parameter in loaded.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.clone()
        return loaded


def merged_model(model: Any) -> Any:
    """Merge the active adapters of a `PeftModel`, which is used up, into its weights; dequantize quantized ones."""
    quantized = getattr(model, "is_quantized", False) and hasattr(model.base_model, "merge_and_dequantize")
    return model.merge_and_dequantize(model.dtype) if quantized else model.merge_and_unload()


def forget_gguf(model: Any) -> None:
    """Drop the marks that loading from GGUF leaves on a model whose weights are plain ones by now.

    transformers refuses to save a model that bears them, whatever its weights are.

    Args:
        model: Any model; one that was not loaded from GGUF stays as it is.

    Raises:
        PacaError: If the weights are still in GGUF's blocks.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or type(quantizer).__name__ != "GgufHfQuantizer":
        return
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise PacaError(
            "The model's weights are still packed in GGUF's blocks, so it can't be saved as an ordinary model; load "
            "it with quantization_config=GgufConfig(dequantize=True)."
        )
    quantizer.remove_quantization_config(model)


def _load(name: str, auto_class: Any, options: dict[str, Any]) -> Any:
    folder: str | Path = name
    if name in EMBEDDED:
        file = EMBEDDED[name].file()
        folder, options["gguf_file"] = file.parent, file.name
    try:
        with _bar_at_terminals_only():
            return auto_class.from_pretrained(folder, **options)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise what any of its readers raises
        if name in EMBEDDED:
            raise
        raise PacaError(load_failure(name, EMBEDDED, error)) from error


@contextlib.contextmanager
def _bar_at_terminals_only() -> Iterator[None]:
    """Keep the bar of reading GGUF, which heeds none of transformers' settings, out of logs and pipes."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    bar = getattr(gguf, "tqdm", None)
    if bar is None:
        yield
        return
    gguf.tqdm = functools.partial(bar, disable=None)
    try:
        yield
    finally:
        gguf.tqdm = bar


def load_failure(name: str, embedded: Iterable[str], error: Exception) -> str:
    """Say why a model could not be loaded: from a folder that is there, or because there is none of that name."""
    if os.path.exists(name):
        return f"The model in {name!r} could not be loaded: {one_line(error)}"
    missing = missing_path(name, "model folder")
    if missing is not None:
        return missing
    near = near_files(Path(name)) if Path(name).parent.is_dir() else ""
    return (
        f"The model {name!r} is not an embedded one ({', '.join(embedded)}{suggestion(name, embedded)}), there is no "
        f"such folder in {str(Path.cwd())!r}{near}, and it could not be loaded from {hub_place()}{_twin(name)}: "
        f"{one_line(error)}"
    )


def _twin(name: str) -> str:
    """The embedded model that has the weights of this repository."""
    twins = [twin for twin, embedded in EMBEDDED.items() if embedded.hub == name]
    return f" (its weights, {EMBEDDED[twins[0]].rounded}, are the embedded {twins[0]!r})" if twins else ""
