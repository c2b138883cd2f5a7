"""What an adapter changes in each linear layer, as numbers that other formats can be made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from paca.errors import PacaError
from paca.tuner.layers import Conv1DLinear, Linear, QuantizedLinear
from paca.tuner.layers.find import adapter_layers


@dataclass(frozen=True)
class LinearUpdate:
    """One layer's update, `Y += s·X[..., I] Δᵀ`.

    Args:
        name: The layer's full name in the base model.
        indices: `I`, shape `(r,)`, ascending.
        delta: `Δ`, shape `(out, r)`.
        scaling: `s`.
        in_features: How many connections the layer has.
        transposed: Whether the base layer stores its weight as `(in, out)`.
    """

    name: str
    indices: Tensor
    delta: Tensor
    scaling: float
    in_features: int
    transposed: bool = False


def linear_updates(model: Any, target: str) -> list[LinearUpdate]:
    """Read the updates of a model's active adapter; where connections have moved, of all that were trained.

    On a quantized layer whose adapter brought its own columns `C`, the update is what is added to the dequantized
    ones: `Δ + (C − W₀[:, I]) / s`.

    Args:
        model: A `PeftModel` with one active adapter, which is a PaCA.
        target: The format that is asked for, for messages.

    Returns:
        One update per adapted layer.

    Raises:
        PacaError: If the adapter trains something that such an update can't express; names all of it.
    """
    refuse(linear_problems(model), target)
    adapter = model.active_adapters[0]
    return [_update(name, layer, adapter) for name, layer in adapter_layers(model, adapter).items()]


def linear_problems(model: Any) -> list[str]:
    """What a model's active adapter trains that no update of a linear layer can express, one item each."""
    adapter = model.active_adapters[0]
    config = model.peft_config[adapter]
    layers = adapter_layers(model, adapter)
    problems = [
        f"{name} is a {type(layer.get_base_layer()).__name__}"
        for name, layer in layers.items()
        if not isinstance(layer, (Linear, Conv1DLinear, QuantizedLinear))
    ]
    problems += [f"biases are trained (bias={config.bias!r})"] if config.bias != "none" else []
    return problems if layers else [*problems, "it adapts no layer"]


def refuse(problems: Sequence[str], target: str) -> None:
    """Raise a PacaError if there are reasons why an adapter can't be written in a format, with the way out."""
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise PacaError(
            f"This adapter can't be written as {target!r}, which holds updates of linear layers only: "
            f"{'; '.join(problems[:5])}{more}. Use --to merged."
        )


def _update(name: str, layer: Any, adapter: str) -> LinearUpdate:
    update = layer.updates([adapter])[0]
    indices, delta = layer.whole_update(adapter)
    delta = delta.detach()
    if update.pretrained is not None:
        offset = update.pretrained.double() - layer.pretrained_columns(indices).t().double()
        delta = (delta.double() + offset / update.scaling).to(delta.dtype)
    return LinearUpdate(
        name, indices, delta, update.scaling, layer.in_features, transposed=isinstance(layer, Conv1DLinear)
    )


def common_rank(updates: Sequence[LinearUpdate]) -> tuple[int, float, float | int]:
    """For readers that know one of each: the largest rank, the most frequent scaling, and the alpha of both."""
    rank = max(len(update.indices) for update in updates)
    scaling = Counter(update.scaling for update in updates).most_common(1)[0][0]
    alpha = scaling * rank
    return rank, scaling, int(alpha) if float(alpha).is_integer() else alpha


def rescaled(update: LinearUpdate, scaling: float) -> Tensor:
    """The `Δ`, shape `(out, r)`, that stands for the same update under another scaling: `Δ·s / scaling`."""
    if update.scaling == scaling:
        return update.delta
    return (update.delta.double() * (update.scaling / scaling)).to(update.delta.dtype)


def target_names(names: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Name layers as briefly as `target_modules` allows: by their last parts, unless these match other layers too."""
    last = {name.rsplit(".", 1)[-1] for name in names}
    matched = {name for name in modules if name.rsplit(".", 1)[-1] in last}
    return sorted(last) if matched == set(names) else sorted(names)


def other_tensors(model: Any) -> dict[str, Tensor]:
    """What the adapter trains besides its updates, the modules that are saved whole, by their names in its file."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0], save_embedding_layers=False)
    return {key: value.detach().cpu().contiguous() for key, value in state.items() if ".paca_" not in key}


def config_fields(model: Any, layers: Sequence[str]) -> dict[str, Any]:
    """The fields of an adapter's configuration that every format has, for an adapter of the named layers."""
    config = model.peft_config[model.active_adapters[0]]
    names = ("base_model_name_or_path", "revision", "task_type", "auto_mapping", "modules_to_save")
    modules = dict(model.get_base_model().named_modules())
    return {
        **{name: getattr(config, name) for name in names},
        "target_modules": target_names(layers, modules),
        "inference_mode": True,
    }
