"""The networks and methods of the vision benchmark: full size, random weights, nothing to download."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from paca import PacaConfig
from paca.workbench.vision.batch_norm import FrozenBatchNorm, freeze_batch_norm
from timing import FLOOR, FLOOR_AGAIN

CLASSES = 10
_LORA_RANK = 8
_PACA_RANK = 16  # trains about as many values per linear layer as LoRA of half the rank


@dataclass(frozen=True)
class Network:
    """One network.

    Args:
        name: What the command line calls it.
        description: What it is, in one line.
        build: Makes it, with random weights.
        head: Name of the module that is trained whole by every method.
        methods: Names of the methods that are measured on it, the reference first.
    """

    name: str
    description: str
    build: Callable[[], nn.Module]
    head: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class ImageMethod:
    """One way to train a network.

    Args:
        name: What the tables call it.
        description: What exactly is measured, in one line.
        prepare: Puts the method onto a network that it may change, given the head's name; returns what is trained.
    """

    name: str
    description: str
    prepare: Callable[[nn.Module, str], nn.Module]


def _transformers_vit(**sizes: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=CLASSES, **sizes))


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES, **options)


_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_ADAPTERS = ("lora", "paca")
_WHOLE = ("full", "paca", "paca-bn-train")

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("vit", "ViT-B/16 of transformers, which the paper used", _transformers_vit, "classifier", _ADAPTERS),
        Network(
            "vit-timm",
            "ViT-B/16 of timm, query, key and value in one layer",
            lambda: _timm("vit_base_patch16_224"),
            "head",
            _ADAPTERS,
        ),
        Network(
            "efficientnetv2-l", "EfficientNetV2-L of timm", lambda: _timm("efficientnetv2_l"), "classifier", _WHOLE
        ),
        Network("tiny-vit", "to try the benchmark out", lambda: _transformers_vit(**_TINY), "classifier", _ADAPTERS),
        Network("tiny-cnn", "to try the benchmark out", lambda: _timm("test_efficientnet"), "classifier", _WHOLE),
    )
}


def freeze(network: nn.Module, head: str) -> nn.Module:
    """Train nothing, over frozen batch normalisation: forward and the gradient of the input remain."""
    return freeze_batch_norm(network).requires_grad_(False)


def train_all(network: nn.Module, head: str) -> nn.Module:
    """Train every parameter, batch normalisation over the batch's statistics."""
    return network.requires_grad_(True)


def use_lora(network: nn.Module, head: str) -> nn.Module:
    """PEFT's LoRA with its defaults on every linear layer but the head."""
    config = LoraConfig(r=_LORA_RANK, lora_alpha=_LORA_RANK, target_modules="all-linear", modules_to_save=[head])
    return get_peft_model(network, config)


def use_paca(network: nn.Module, head: str) -> nn.Module:
    """This package on every linear layer and convolution but the head; batch normalisation frozen, if there is any."""
    return get_peft_model(freeze_batch_norm(network), _paca_config(network, head))


def use_paca_and_train_batch_norm(network: nn.Module, head: str) -> nn.Module:
    """This package, with batch normalisation over the batch's statistics and trained."""
    adapted = get_peft_model(network, _paca_config(network, head))
    for module in adapted.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
    return adapted


def _paca_config(network: nn.Module, head: str) -> PacaConfig:
    convolutional = any(isinstance(module, nn.BatchNorm2d | FrozenBatchNorm) for module in network.modules())
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(head)
    ]
    return PacaConfig(
        r=_PACA_RANK,
        # In a ViT, as LoRA: its one convolution cuts the image into patches.
        target_modules=layers if convolutional else "all-linear",
        clamp_rank=True,
        random_seed=0,
        modules_to_save=[head],
    )


METHODS: dict[str, ImageMethod] = {
    method.name: method
    for method in (
        ImageMethod(FLOOR, "forward and input gradients, nothing trained", freeze),
        ImageMethod(FLOOR_AGAIN, "the same once more: how far apart the two are is the noise of the run", freeze),
        ImageMethod("full", "every parameter; batch normalisation in training mode", train_all),
        ImageMethod("lora", f"PEFT's LoRA, rank {_LORA_RANK}, its defaults (float32 adapter)", use_lora),
        ImageMethod("paca", f"this package, rank {_PACA_RANK}; batch normalisation frozen", use_paca),
        ImageMethod(
            "paca-bn-train",
            "the same, batch normalisation in training mode and trained",
            use_paca_and_train_batch_norm,
        ),
    )
}


def logits_of(output: Any) -> Tensor:
    """A network's answer, whether it comes bare or in transformers' container; float32, shape `(batch, classes)`."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits.to(torch.float32)
