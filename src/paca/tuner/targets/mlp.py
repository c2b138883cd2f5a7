"""Which layers `target_modules="mlp"` and `"mlp-out"` stand for: those of MLPs, whatever a model calls them.

Output projections are told by their shapes. An MLP widens its input and narrows it again, so its output projection
reads what the layer before it has widened and gives back that layer's own input width. Attention does the same where
its heads are wide, so modules named after it don't count. The other layers of an MLP are those beside the output
projection that widen to what it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..layers.embedding import Embedding
from ..layers.experts import expert_parameters
from ..layers.kinds import layer_kind
from ..layers.norm import Norm
from .checks import base_of, weight_reader

_GATED = 2  # gate and up may be one layer of twice the width
_EXPERTS_OUT = "down_proj"  # transformers' one name of fused experts' output projections
# Of inverted residuals in timm: other convolutions stand between the two, and a stage's first block changes the width.
_BY_NAME = ("conv_pwl",)


@dataclass(frozen=True)
class _Mlp:
    """An MLP.

    Args:
        output: The full name of its output projection.
        within: How all of its layers' full names begin: with that of the module that has them, and a dot.
    """

    output: str
    within: str


def mlp_outputs(model: nn.Module) -> list[str]:
    """The names of a model's layers that project out of an MLP, adapted already or not."""
    return [mlp.output for mlp in _find_mlps(model, _projections(model))]


def mlp_layers(model: nn.Module) -> list[str]:
    """The names of all layers of a model's MLPs, adapted already or not."""
    layers = _projections(model)
    found: set[str] = set()
    for mlp in _find_mlps(model, layers):
        hidden, _ = _widths(layers[mlp.output])
        beside = (name for name in layers if name.startswith(mlp.within))
        found |= {name for name in beside if _widens(layers[name], hidden) and _belong_together(name, mlp.output)}
        found.add(mlp.output)
    return [name for name in layers if name in found]


def _projections(model: nn.Module) -> dict[str, Any]:
    layers = ((name, base_of(module)) for name, module in model.named_modules() if not _inside(name))
    return {name: base for name, base in layers if _is_projection(base) and not weight_reader(model, name)}


def _find_mlps(model: nn.Module, layers: Mapping[str, Any]) -> list[_Mlp]:
    named = [_Mlp(name, "".join(name.rpartition(".")[:2])) for name in layers if name.rpartition(".")[2] in _BY_NAME]
    if named:
        return named
    found = []
    before: tuple[str, Any] | None = None
    for name, base in layers.items():
        into, out = _widths(base)
        if into == out:  # such as a depthwise convolution between the two
            continue
        if before is not None and into > out and _belong_together(before[0], name):
            widened_from, _ = _widths(before[1])
            if widened_from == out and _widens(before[1], into):
                found.append(_Mlp(name, _common(before[0], name)))
        before = name, base
    return found


def _widens(base: Any, hidden: int) -> bool:
    into, out = _widths(base)
    return into < out and out in (hidden, _GATED * hidden)


def mlp_output_experts(model: nn.Module) -> list[str]:
    """The full names of fused expert weights that project out of experts."""
    return [name for name in expert_parameters(model) if name.rpartition(".")[2] == _EXPERTS_OUT]


def layers_by_shape(model: nn.Module) -> str:
    """What layers a model has, for a message: their last names with inputs and outputs."""
    shapes = (
        (name.rpartition(".")[2], *_widths(base_of(module)))
        for name, module in model.named_modules()
        if not _inside(name) and _is_projection(base_of(module))
    )
    return ", ".join(f"{name} ({into} to {out})" for name, into, out in Counter(shapes)) or "none"


def _inside(name: str) -> bool:
    """Whether a name is that of a part of an adapted layer."""
    return name.endswith(".base_layer")


def _is_projection(base: nn.Module) -> bool:
    kind = layer_kind(base)
    return (
        kind is not None
        and not issubclass(kind.layer_class, (Embedding, Norm))
        and not isinstance(base, nn.MultiheadAttention)
    )


def _widths(base: Any) -> tuple[int, int]:
    """How many features, or channels, a layer reads and gives."""
    for into, out in (("in_features", "out_features"), ("in_channels", "out_channels"), ("nx", "nf")):
        if hasattr(base, into):
            return getattr(base, into), getattr(base, out)
    raise TypeError(f"{type(base).__name__} tells no width")


def _belong_together(before: str, name: str) -> bool:
    """Whether two layers are of one block, and of no attention module."""
    first, second = before.split("."), name.split(".")
    common = _shared_parts(first, second)
    of_two_blocks = all(path[common].isdigit() and len(path) > common + 1 for path in (first, second))
    around = second[:common][-1:] + second[:-1][-1:]
    return not of_two_blocks and not any("att" in part.lower() for part in around)


def _common(before: str, name: str) -> str:
    parts = name.split(".")
    return "".join(f"{part}." for part in parts[: _shared_parts(before.split("."), parts)])


def _shared_parts(first: Sequence[str], second: Sequence[str]) -> int:
    return next(index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
