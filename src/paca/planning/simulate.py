"""Runs two training steps of a model that holds no memory, and counts what a real one would hold."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paca.errors import PacaError
from paca.memory import Peak, StepTracker
from paca.planning import attention
from paca.planning.fake import materialize_fake
from paca.planning.packed import pack_linears
from paca.training.schema import suggestion

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Args:
        method: A name in `METHODS`.
        rank: Of the adapter.
        batch: Sequences per step.
        tokens: Per sequence.
        dtype: Of the base weights; of what 4-bit layers compute in.
        autocast: Run the forward pass under bfloat16 autocast, as Trainer does with `bf16=True`.
        float32_adapter: Train adapters in float32 over a 16-bit base, as PEFT does by default.
        checkpointing: Recompute each block in backward instead of keeping what it made.
        attention: `fused`, what a GPU's flash kernel keeps, or `sdpa`, what the CPU's keeps.
        block: Round sizes up to so many bytes; CUDA's allocator has 512.
        targets: Names of the linear layers that are adapted.
    """

    method: str = "paca"
    rank: int = 16
    batch: int = 1
    tokens: int = 512
    dtype: torch.dtype = torch.bfloat16
    autocast: bool = False
    float32_adapter: bool = True
    checkpointing: bool = False
    attention: str = "fused"
    block: int = 1
    targets: tuple[str, ...] = field(default=LINEARS)


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        name: What is typed.
        peft: Makes PEFT's configuration; None trains every parameter.
        packed: Whether base weights are in NF4.
    """

    name: str
    peft: Callable[[Setting], Any] | None
    packed: bool = False


def _paca(setting: Setting) -> Any:
    from paca import PacaConfig

    return PacaConfig(r=setting.rank, target_modules=list(setting.targets), random_seed=0)


def _lora(setting: Setting) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=setting.rank, lora_alpha=setting.rank, target_modules=list(setting.targets))


def _dora(setting: Setting) -> Any:
    config = _lora(setting)
    config.use_dora = True
    return config


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("paca", _paca),
        Method("lora", _lora),
        Method("dora", _dora),
        Method("full", None),
        Method("qpaca", _paca, packed=True),
        Method("qlora", _lora, packed=True),
    )
}


def find_method(name: str) -> Method:
    """Find a method by name.

    Args:
        name: Of a method in `METHODS`.

    Returns:
        It.

    Raises:
        PacaError: If there is none.
    """
    if name not in METHODS:
        raise PacaError(f"There is no method {name!r}{suggestion(name, METHODS)}. Known: {', '.join(METHODS)}.")
    return METHODS[name]


def simulate(config: Any, setting: Setting) -> Peak:
    """Find the peak of the second training step, in which the optimizer's state is there.

    Args:
        config: transformers' configuration of a causal language model.
        setting: How it is trained.

    Returns:
        The peak.
    """
    model = build(config, setting)
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialize_fake(model)
        return measure(model, setting)


def build(config: Any, setting: Setting, device: str = "meta") -> nn.Module:
    """Make the model with its method on.

    Args:
        config: transformers' configuration.
        setting: How it is trained.
        device: `meta`, or a real one for a comparison.

    Returns:
        The model in training mode.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    attention.register()
    method = find_method(setting.method)
    config.use_cache = False
    config._attn_implementation = attention.ATTENTIONS[setting.attention] if device == "meta" else "sdpa"
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    if method.packed:
        pack_linears(model, setting.targets, setting.dtype)
    if setting.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if method.peft is not None:
            model.enable_input_require_grads()
    if method.peft is not None:
        model = get_peft_model(model, method.peft(setting), autocast_adapter_dtype=setting.float32_adapter)
    return model.train()


def measure(model: nn.Module, setting: Setting) -> Peak:
    """Take two steps and report the peak of the second.

    Args:
        model: As `build` makes it, real or fake.
        setting: How it is trained.

    Returns:
        The peak.
    """
    ids = torch.zeros(setting.batch, setting.tokens, dtype=torch.long)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    with StepTracker(model, optimizer, [ids], setting.block) as tracker:
        for _ in range(2):
            tracker.reset_peak()
            with torch.autocast("cpu", torch.bfloat16) if setting.autocast else contextlib.nullcontext():
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
    return tracker.peak()
