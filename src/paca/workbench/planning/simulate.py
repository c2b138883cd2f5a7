"""Runs a training step of a model that holds no memory, and counts what a real one would hold and compute."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paca.method.columns.resident import kept_tensors
from paca.profiling import Peak, StepTracker
from paca.profiling.operations import OperationCounter, Operations, start_gradients_at
from paca.workbench.methods.section import MethodSection
from paca.workbench.planning import attention, images, sharded
from paca.workbench.planning.fake import materialize_fake
from paca.workbench.planning.losses import find_loss, gpu_kernels
from paca.workbench.planning.methods import config_fields, find_method
from paca.workbench.planning.models import is_image_config
from paca.workbench.planning.optimizers import ADAMW_OPERATIONS, find_optimizer, paged_states, with_states
from paca.workbench.planning.packed import pack_linears
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.vision.method import with_method


@dataclass(frozen=True)
class Step:
    """What one training step takes.

    Args:
        peak: The most bytes that are alive at once.
        paged: Bytes of the optimizer's states that may lie outside the GPU, and are not in the peak.
        by_phase: Operations of matrix products, convolutions and attention, by phase.
        trained: How many values are trained.
        modules: Names of the modules that something is trained of, in the model without a method.
    """

    peak: Peak
    paged: int
    by_phase: dict[str, int]
    trained: int
    modules: frozenset[str]


class Planner:
    """Simulates steps of one model.

    Args:
        config: transformers' configuration of a causal language model or of an image classifier.
        entered: Called as each module is entered, to show that something goes on.
    """

    def __init__(self, config: Any, entered: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self.images = is_image_config(config)
        self._entered = entered
        self._floors: dict[tuple[Any, ...], int] = {}

    def step(self, setting: TrainingSetting) -> Step:
        """Simulate a step in which the optimizer's state is there."""
        model = build(self._config, setting)
        with sharded.mesh(setting.ranks) as mesh, _simulated(setting):
            materialize_fake(model)
            if mesh is not None:
                sharded.shard(model, mesh)
            return measure(model, setting, self._entered)

    def operations(self, setting: TrainingSetting, step: Step) -> Operations:
        """Sum up the operations of a step that `step` found for this setting."""
        forward, backward = step.by_phase.get("forward", 0), step.by_phase.get("backward", 0)
        floor = self._floor(setting, step.modules)
        return Operations(
            forward,
            backward,
            step.by_phase.get("recompute", 0),
            ADAMW_OPERATIONS * step.trained,
            forward + backward - floor,
        )

    def _floor(self, setting: TrainingSetting, modules: frozenset[str]) -> int:
        """Operations of the frozen model, forward and backward, as far down as gradients have to reach."""
        key = (modules, setting.batch, setting.tokens, setting.pixels, setting.loss, setting.batch_norm)
        if key not in self._floors:
            model = _plain(self._config, setting, "meta")
            start_gradients_at(model, modules)
            with _simulated(setting), OperationCounter(lambda: "") as counter:
                materialize_fake(model)
                _loss(model.train(), _batch(model, setting), setting).backward()
            self._floors[key] = counter.by_phase[""]
        return self._floors[key]


def simulate(config: Any, setting: TrainingSetting) -> Peak:
    """Find the peak of a training step of a language model or an image classifier, optimizer's state included."""
    return Planner(config).step(setting).peak


@contextlib.contextmanager
def _simulated(setting: TrainingSetting) -> Any:
    on_gpu = setting.attention == "fused" and setting.loss == "chunked"
    with FakeTensorMode(allow_non_fake_inputs=True), gpu_kernels() if on_gpu else contextlib.nullcontext():
        yield


def build(config: Any, setting: TrainingSetting, device: str = "meta") -> nn.Module:
    """Make the model in training mode with its method on, on `meta` or a real device for a comparison."""
    from peft import get_peft_model

    from paca.workbench.methods.registry import method_config

    method = find_method(setting.method)
    model = _plain(config, setting, device)
    if method.quantization is not None:
        pack_linears(model, setting.dtype)
    if setting.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if method.peft is not None:
            model.enable_input_require_grads()
    if method.peft is not None:
        fields = config_fields(method, setting)
        if is_image_config(config):
            section = MethodSection(method.peft, fields)
            model = with_method(model, section, setting.batch_norm, model.config.num_labels)
        else:
            model = get_peft_model(model, method_config(method.peft, fields))
        _cast_adapter(model, setting.adapter_dtype)
    return model.train()


def _plain(config: Any, setting: TrainingSetting, device: str) -> Any:
    attention.register()
    config._attn_implementation = attention.ATTENTIONS[setting.attention] if device == "meta" else "sdpa"
    if is_image_config(config):
        return images.build(config, setting.dtype, device)
    from transformers import AutoModelForCausalLM

    config.use_cache = False
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    find_loss(setting.loss).prepare(model)
    return model


def _cast_adapter(model: nn.Module, dtype: torch.dtype | None) -> None:
    for name, parameter in model.named_parameters():
        if dtype is not None and parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)  # TRL's way, which leaves DoRA's magnitudes in float32


def measure(
    model: nn.Module, setting: TrainingSetting, entered: Callable[[], None] = lambda: None, warm_up: bool = False
) -> Step:
    """Take a step with the optimizer's states there, and report it.

    `warm_up` takes a whole step before it, in which a real model arranges its weights; a fake one does not. `entered`
    is called as each module is entered.
    """
    batch = _batch(model, setting)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = find_optimizer(setting.optimizer)
    optimizer = kind.make(trained)
    if warm_up:
        _take(model, batch, setting, optimizer)
    else:
        with_states(optimizer)
    paged = paged_states(optimizer) if kind.paged else []
    with (
        nn.modules.module.register_module_forward_pre_hook(lambda *_: entered()),
        StepTracker(model, optimizer, [*batch.values(), *kept_tensors(model)], setting.block, paged) as tracker,
        OperationCounter(lambda: tracker.where()[0]) as counter,
    ):
        _take(model, batch, setting, optimizer)
    return Step(
        tracker.peak(),
        sum(state.untyped_storage().nbytes() for state in paged),
        counter.by_phase,
        sum(parameter.numel() for parameter in trained),
        _trained_modules(model),
    )


def _take(
    model: nn.Module, batch: dict[str, Tensor], setting: TrainingSetting, optimizer: torch.optim.Optimizer
) -> None:
    loss = _loss(model, batch, setting)
    loss.backward()
    del loss
    optimizer.step()
    optimizer.zero_grad()


def _batch(model: nn.Module, setting: TrainingSetting) -> dict[str, Tensor]:
    if is_image_config(model.config):
        return images.batch(model, setting)
    return {"input_ids": torch.zeros(setting.batch, setting.tokens, dtype=torch.long)}


def _loss(model: Any, batch: dict[str, Tensor], setting: TrainingSetting) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16) if setting.autocast else contextlib.nullcontext():
        if "pixel_values" in batch:
            loss: Tensor = model(**batch).loss
            return loss
        return find_loss(setting.loss).compute(model, batch["input_ids"])


def _trained_modules(model: nn.Module) -> frozenset[str]:
    """Where gradients are needed, by names that the model has without a method."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(model, PeftModel):
        return frozenset(
            name
            for name, module in model.named_modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        )
    base = model.get_base_model()
    names = {
        name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    }
    if getattr(base, "is_gradient_checkpointing", False):  # gradients reach down to the embeddings
        inputs = base.get_input_embeddings()
        names |= {name for name, module in base.named_modules() if module is inputs}
    return frozenset(names)
