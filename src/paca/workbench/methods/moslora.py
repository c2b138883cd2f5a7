"""MosLoRA: LoRA with a trained r × r mixer between A and B, so that `W' = W + s·B M A`.

Wu et al., "Mixture-of-Subspaces in Low-Rank Adaptation", EMNLP 2024 (arXiv 2406.11909). The paper of PaCA compares
with it and PEFT does not have it, so it is a method of PEFT here: it trains, saves, loads and merges as LoRA does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraConfig, LoraModel
from peft.tuners.lora.layer import LoraVariant
from peft.utils.peft_types import PeftType, register_peft_method
from torch import Tensor, nn

from paca.errors import PacaError
from paca.tuner.registration import add_member

add_member(PeftType, "MOSLORA")


@dataclass
class MosLoraConfig(LoraConfig):
    """LoRA's configuration; `r` is also the size of the mixer."""

    def __post_init__(self) -> None:
        """Name the method and the layer that it puts in."""
        super().__post_init__()
        self.peft_type = PeftType.MOSLORA
        self._register_custom_module({nn.Linear: MosLoraLinear})


class MosLoraModel(LoraModel):
    """Puts `MosLoraLinear` in place of linear layers."""

    @staticmethod
    def _create_new_module(
        lora_config: MosLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        """Refuse the layers that would become plain LoRA's, and weights that a product can't be added to."""
        if not isinstance(target, nn.Linear):
            raise PacaError(
                f"MosLoRA adapts nn.Linear only, got {type(target).__name__}; name linear layers in target_modules."
            )
        if not target.weight.is_floating_point():
            raise PacaError(
                f"MosLoRA adapts plain weights only, got {type(target).__name__}, which packs them; leave the base "
                "model unquantized."
            )
        module: nn.Module = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        return module


class MosLoraVariant(LoraVariant):
    """What MosLoRA computes where PEFT's LoRA layer asks its variant."""

    @staticmethod
    def init(module: MosLoraLinear, adapter_name: str, **kwargs: Any) -> None:
        """Give an adapter its mixer: orthogonal, so that it neither stretches nor loses what A has found."""
        if not hasattr(module, "lora_mixer"):
            module.lora_mixer = nn.ModuleDict()
        module.lora_mixer[adapter_name] = nn.Linear(module.r[adapter_name], module.r[adapter_name], bias=False)
        nn.init.orthogonal_(module.lora_mixer[adapter_name].weight)
        module._move_adapter_to_device_of_base_layer(adapter_name)

    @staticmethod
    def forward(module: MosLoraLinear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Add `s·B M A x` to the base layer's output."""
        reduced = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        mixed = module.lora_mixer[active_adapter](reduced)
        return result + module.lora_B[active_adapter](mixed) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: MosLoraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight with the adapter in it."""
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: MosLoraLinear, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the adapter to the weight in place."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: MosLoraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight without the adapter."""
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)


class MosLoraLinear(Linear):
    """A linear layer under MosLoRA."""

    adapter_layer_names = (*Linear.adapter_layer_names, "lora_mixer")

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant:
        """MosLoRA's own, whatever else LoRA's configuration may ask for."""
        return MosLoraVariant()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Compute `s·B M A`, of the weight's shape `(out, in)`."""
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        m = self.lora_mixer[adapter].weight
        wide = torch.promote_types(b.dtype, torch.float32)  # some CPUs multiply slowly in 16 bits
        product: Tensor = b.to(wide) @ m.to(wide) @ a.to(wide)
        return (product * self.scaling[adapter]).to(b.dtype)


# An import suffices: afterwards `PeftModel.from_pretrained` loads MosLoRA's adapters.
register_peft_method(name="moslora", config_cls=MosLoraConfig, model_cls=MosLoraModel, prefix=MosLoraModel.prefix)
