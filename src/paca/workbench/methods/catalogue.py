"""The methods that paca knows by name: how each is put onto a model, and at which learning rate it is tried first.

Unless its arguments say otherwise, a method adapts every linear layer but the output head, scales by 1 (alpha = rank),
and trains its adapter in PEFT's default of float32, whatever the base is in.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paca.errors import PacaError
from paca.workbench.methods.placement import anywhere
from paca.workbench.methods.registry import known_methods, method_config
from paca.workbench.methods.targets import check_targets
from paca.workbench.models.embedded_columns import columns_of_embedded
from paca.workbench.models.lean import quietly_lean

FLOOR, LEAN_FLOOR, FULL = "frozen", "frozen-lean", "full"
FLOORS = (FLOOR, LEAN_FLOOR)


@dataclass(frozen=True)
class AdapterSetting:
    """What a method is given.

    Args:
        rank: Of the adapter, where it has one.
        targets: PEFT's `target_modules`.
        seed: Of a random selection.
        arguments: Of the method's PEFT config; they win over all else.
        blocks: PEFT's `layers_to_transform`, or `"upper-half"`; None for all.
    """

    rank: int = 16
    targets: Any = "all-linear"
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    blocks: Any = None

    @property
    def in_some_blocks(self) -> bool:
        """Whether not all blocks are adapted, so that backward may end before the lowest."""
        return self.arguments.get("layers_to_transform", self.blocks) is not None

    def anywhere(self) -> "AdapterSetting":
        """The same without what places connections by data or another checkpoint: for bytes and times."""
        return dataclasses.replace(self, arguments=anywhere(self.arguments))


@dataclass(frozen=True)
class Method:
    """One way to train a model.

    Args:
        name: What is typed.
        description: What exactly is done, in one line.
        peft: PEFT's name of it; None for a method without an adapter.
        fields: Fields of its PEFT config that make it this method.
        rate: The learning rate to try first.
        trains_base: Every parameter of the model is trained.
        frozen_part: Adapter parameters with this in their name are not trained.
        adapter_in_base_dtype: The adapter is not put into float32.
        quantization: The base is quantized like this, whatever the recipe says; None as the recipe says.
        lean: Modules get the forwards of `paca.lean`, and the loss makes no logits.
        keeps_base: The base weights are never written to, so that several such models may share them.
    """

    name: str
    description: str
    peft: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1e-3
    trains_base: bool = False
    frozen_part: str | None = None
    adapter_in_base_dtype: bool = False
    quantization: str | None = None
    lean: bool = False
    keeps_base: bool = False

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.trains_base or self.peft is not None

    def config_fields(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the fields of the PEFT config: those of `wanted` that it has, and the method's own, which win."""
        known = {spec.name for spec in dataclasses.fields(known_methods()[str(self.peft)])}
        return {**{name: value for name, value in wanted.items() if name in known}, **self.fields}

    def config(self, setting: AdapterSetting) -> Any:
        """Make the PEFT config; None for a method without an adapter."""
        if self.peft is None:
            return None
        wanted = {
            "r": setting.rank,
            "lora_alpha": setting.arguments.get("r", setting.rank),
            "target_modules": setting.targets,
            "layers_to_transform": setting.blocks,
            "random_seed": setting.seed,
        }
        if "budget" in setting.arguments:  # which stands in the place of a rank
            del wanted["r"]
        return method_config(self.peft, {**self.config_fields(wanted), **setting.arguments})

    def put_on(self, model: Any, setting: AdapterSetting) -> Any:
        """Put the method onto a causal language model, in place, and return the model to train.

        A PacaError if the base is to be trained and its weights are quantized.
        """
        from peft import get_peft_model

        if self.peft is None:
            packed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
            if self.trains_base and packed:
                raise PacaError(f"{self.name} can't train quantized weights, such as {packed[0]}; use a plain base.")
            if self.lean:
                quietly_lean(model)
            return model.requires_grad_(self.trains_base)
        with columns_of_embedded(self.config(setting)) as config:
            check_targets(model, config)
            adapted = get_peft_model(model, config, autocast_adapter_dtype=not self.adapter_in_base_dtype)
        for name, parameter in adapted.named_parameters():
            if self.frozen_part is not None and self.frozen_part in name:
                parameter.requires_grad_(False)
        return adapted


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(FLOOR, "nothing trained; a step is forward and input gradients, the least that any method can cost"),
        Method(LEAN_FLOOR, "the same, keeping the least, as `paca.lean` makes any model do", lean=True),
        Method("paca", "this package: columns of the weight itself", "paca", rate=5e-3),
        Method("lora", "PEFT's LoRA, adapter in float32 (PEFT's default)", "lora", rate=2e-3, keeps_base=True),
        Method(
            "lora-base-dtype",
            "PEFT's LoRA, adapter in the base's dtype",
            "lora",
            rate=2e-3,
            adapter_in_base_dtype=True,
            keeps_base=True,
        ),
        Method("dora", "PEFT's DoRA", "lora", {"use_dora": True}, rate=2e-3, keeps_base=True),
        Method("moslora", "LoRA with a trained r × r mixer between A and B", "moslora", rate=2e-3, keeps_base=True),
        Method("miss", "PEFT's MiSS; keeps rank-sized activations too", "miss", rate=1e-3, keeps_base=True),
        Method(
            "lora-fa",
            "PEFT's LoRA with every A frozen; keeps rank-sized activations too",
            "lora",
            rate=5e-3,
            frozen_part="lora_A",
            keeps_base=True,
        ),
        Method(FULL, "every parameter of the model", rate=5e-5, trains_base=True),
        Method("qpaca", "PaCA over weights in NF4", "paca", rate=5e-3, quantization="nf4"),
        Method("qlora", "PEFT's LoRA over weights in NF4", "lora", rate=2e-3, quantization="nf4", keeps_base=True),
    )
}
