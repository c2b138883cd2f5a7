"""An adapter merged into an ordinary model folder: sharded safetensors, one shard in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from paca.tuner.layers import PacaLayer, QuantizedLinear
from paca.tuner.layers.quantized import comes_quantized, dequantized_matrix
from paca.tuner.layers.unquantized import unquantize, unquantized_linear

Producer = Callable[[], Tensor]
Seen = Callable[[str, Tensor], None]


def _ignore(name: str, tensor: Tensor) -> None:
    """Look at a tensor and do nothing."""


def write_merged(model: Any, folder: Path, max_shard_size: int | str = "5GB", seen: Seen = _ignore) -> None:
    """Merge the active adapters and write an ordinary model.

    Plain weights are merged in place, which copies nothing. Quantized ones are dequantized as they are written, those
    of one shard at a time.

    Args:
        model: A `PeftModel`; it is used up.
        folder: Where config, generation config and weights go.
        max_shard_size: `5GB`, `200MB`, or bytes; a tensor that is larger has a shard of its own.
        seen: Called with the name, as in a reloaded model's `state_dict`, and the value of each tensor written.
    """
    if any(isinstance(module, QuantizedLinear) or comes_quantized(module) for module in model.modules()):
        _write_dequantized(model, folder, max_shard_size, seen)
        return
    merged = model.merge_and_unload(safe_merge=True)
    match_tie_flag(merged)
    for name, tensor in merged.state_dict().items():
        seen(name, tensor)
    merged.save_pretrained(folder, max_shard_size=max_shard_size)


def match_tie_flag(model: Any) -> None:
    """Make the configuration say whether input and output embeddings are one tensor."""
    # An adapter may have trained a copy of one of them whole. Saved with the base model's flag, it would be dropped.
    if model.config.get_text_config().tie_word_embeddings and not embeddings_are_tied(model):
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def embeddings_are_tied(model: Any) -> bool:
    """Whether a transformers model has output embeddings, and they are one tensor with its input embeddings."""
    inputs, outputs = map(_in_use, (model.get_input_embeddings(), model.get_output_embeddings()))
    if inputs is None or outputs is None:
        return False
    return inputs.weight is outputs.weight or inputs.weight.data_ptr() == outputs.weight.data_ptr() != 0


def _in_use(module: Any) -> Any:
    """The module itself, or the copy of it that an adapter trained whole."""
    copies, names = getattr(module, "modules_to_save", None), getattr(module, "active_adapters", None)
    return copies[names[0]] if copies and names and names[0] in copies else module


def _write_dequantized(model: Any, folder: Path, max_shard_size: int | str, seen: Seen) -> None:
    from transformers.core_model_loading import revert_weight_conversion

    dtype = model.dtype if model.dtype.is_floating_point else torch.bfloat16
    skeleton, producers = _dequantized_on_demand(model, dtype)
    match_tie_flag(skeleton)
    tied = _tied_copies(skeleton)
    state = {name: tensor for name, tensor in skeleton.state_dict().items() if name not in tied}
    if set(revert_weight_conversion(skeleton, dict(state))) != set(state):  # names of files are not those of modules
        for name, produce in producers.items():
            module = skeleton.get_submodule(name.rpartition(".")[0])
            module.weight = nn.Parameter(produce(), requires_grad=False)
        for name, tensor in skeleton.state_dict().items():
            seen(name, tensor)
        skeleton.save_pretrained(folder, max_shard_size=max_shard_size)
        return
    skeleton.config.architectures = [type(skeleton).__name__]
    skeleton.config.save_pretrained(folder)
    if skeleton.can_generate():
        skeleton.generation_config.save_pretrained(folder)
    write_shards(state, producers, folder, max_shard_size, seen)


def _tied_copies(model: Any) -> list[str]:
    """The output embeddings' weight, if it is the input embeddings' too; files hold it once."""
    head = model.get_output_embeddings()
    names = (f"{name}.weight" for name, module in model.named_modules() if module is head)
    return list(names) if embeddings_are_tied(model) else []


def _dequantized_on_demand(model: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Producer]]:
    """A quantized `PeftModel` as a plain model, its quantized weights on the meta device; by name what makes each."""
    quantized: dict[int, Producer] = {}
    originals: list[tuple[QuantizedLinear, Any]] = []
    for layer in [module for module in model.modules() if isinstance(module, PacaLayer)]:
        if isinstance(layer, QuantizedLinear):
            layer.check_finite(None, dtype)
            originals.append((layer, layer.base_layer))
            layer.base_layer = _hollow(layer.base_layer, (layer.out_features, layer.in_features), dtype)
            quantized[id(layer.base_layer)] = partial(layer.adapted_matrix, dtype, list(layer.active_adapters))
        else:
            layer.merge(safe_merge=True)
    updated: dict[int, Any] = {}  # layers of PEFT's other methods by their base: merging would quantize the sum again
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        if comes_quantized(layer.get_base_layer()):
            updated[id(layer.get_base_layer())] = layer
        elif not isinstance(layer, PacaLayer):
            layer.merge(safe_merge=True)
    base = model.base_model.unload()
    for layer, original in originals:
        layer.base_layer = original  # out of the model by now, it goes on holding its quantized weight
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if comes_quantized(child) and hasattr(child, "in_features"):
                hollow = _hollow(child, (child.out_features, child.in_features), dtype)
                quantized[id(hollow)] = partial(_dequantized, child, dtype, updated.get(id(child)))
                setattr(parent, name, hollow)
    skeleton = unquantize(base, dtype)
    return skeleton, {
        f"{name}.weight": quantized[id(module)] for name, module in skeleton.named_modules() if id(module) in quantized
    }


def _hollow(base: Any, shape: tuple[int, int], dtype: torch.dtype) -> nn.Linear:
    linear = unquantized_linear(base, torch.empty(shape, dtype=dtype, device="meta"))
    if getattr(base, "bias", None) is not None:
        linear.bias = nn.Parameter(base.bias.detach().to(dtype), requires_grad=False)
    return linear


def _dequantized(layer: Any, dtype: torch.dtype, updated: Any) -> Tensor:
    weight = dequantized_matrix(layer)
    for name in () if updated is None else updated.active_adapters:
        weight = weight + updated.get_delta_weight(name).to(weight.dtype)
    return weight.to(dtype)


def write_shards(
    state: Mapping[str, Tensor],
    producers: Mapping[str, Producer],
    folder: Path,
    max_shard_size: int | str,
    seen: Seen,
) -> None:
    """Write tensors as transformers names its files, making those of one shard at a time.

    Args:
        state: The tensors by name; on the meta device those that are yet to be made.
        producers: What makes these.
        folder: Where the files go.
        max_shard_size: Bytes, or as `write_merged` takes it.
        seen: Called with the name and the value of each tensor written.
    """
    split = split_torch_state_dict_into_shards(
        dict(state), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        made = {name: producers[name]() if name in producers else state[name] for name in names}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}
        for name, tensor in tensors.items():
            seen(name, tensor)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del made, tensors  # before the next shard's are made
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
