"""Names of layers that PEFT takes for fused experts when it loads a LoRA, and how to name these layers all the same.

In transformers 4 the experts of a mixture were linear layers, such as `gate_proj`; today they are parts of one
parameter. So that old adapters load, PEFT puts that parameter in the place of such a name in `target_modules`, also
where it names a dense layer or a shared expert of the same model (https://github.com/huggingface/peft/issues/3711).
Named as a parameter, `model.layers.0.mlp.gate_proj.weight` in `target_parameters`, the layer is left to itself, and
its tensors have the names that they always have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def rewritten_names(base: nn.Module, names: Sequence[str]) -> list[str]:
    """List what PEFT would put something else in the place of in a LoRA's `target_modules`.

    Args:
        base: The base model.
        names: Names of layers, in full or their last parts.

    Returns:
        Those of the names that PEFT rewrites.
    """
    suspects = {last for last in {_last(name) for name in names} if _rewrites(base, last)}
    return [name for name in names if _last(name) in suspects and _rewrites(base, name)]


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _rewrites(base: nn.Module, name: str) -> bool:
    """Whether PEFT puts something else in the place of a name in `target_modules`."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config: Any = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, base, None)
    except ValueError:  # one of several names that are fused, without the others
        return True
    return name not in config.target_modules
