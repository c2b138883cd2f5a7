"""Runs a training step of a model that holds no memory, and counts what a real one would hold and compute."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paca.errors import PacaError
from paca.method.columns.resident import kept_tensors
from paca.profiling import Peak, StepTracker
from paca.profiling.operations import OperationCounter, Operations, start_gradients_at
from paca.workbench.base.messages import one_line
from paca.workbench.methods.adapted_layers import adapted_layers, trained_parameters
from paca.workbench.methods.section import MethodSection
from paca.workbench.models.lean import quietly_lean
from paca.workbench.planning import attention, images, sharded
from paca.workbench.planning.blocks import peak_of_all, with_fewer_blocks
from paca.workbench.planning.fake import materialize_fake
from paca.workbench.planning.families import find_family, is_image_config
from paca.workbench.planning.kernels import kernel_note, refuse_token_by_token
from paca.workbench.planning.losses import find_loss, gpu_kernels
from paca.workbench.planning.methods import config_fields, find_method
from paca.workbench.planning.optimizers import ADAMW_OPERATIONS, find_optimizer, paged_states, with_states
from paca.workbench.planning.packed import pack_linears, scales
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.stored import refuse_unplanned, stored_quantization
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
        unreached: Parameters that were to be trained and get no gradient, by name; not counted in `trained`.
        uncalled: Layers with such parameters only, by their names in the model without a method.
    """

    peak: Peak
    paged: int
    by_phase: dict[str, int]
    trained: int
    modules: frozenset[str]
    unreached: frozenset[str]
    uncalled: tuple[str, ...]


class Planner:
    """Simulates steps of one model.

    Args:
        config: transformers' configuration of a model of one of the `families`.
        entered: Called as each module is entered, to show that something goes on.
    """

    def __init__(self, config: Any, entered: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self.images = is_image_config(config)
        self.own_attention = False  # whether the model takes no attention but transformers' own
        self.kernel_note = ""
        self._entered = entered
        self._floors: dict[tuple[Any, ...], int] = {}
        self._unreached: dict[tuple[Any, ...], frozenset[str]] = {}

    def step(self, setting: TrainingSetting) -> Step:
        """Simulate a step in which the optimizer's state is there; a PacaError says why it can't be."""
        try:
            return self._reached(setting)
        except PacaError:
            raise
        except Exception:  # what a model's own code raises over fake tensors is anybody's guess
            self.own_attention = True
        try:
            with self._explained(setting):
                return self._reached(setting)
        except PacaError:
            self.own_attention = False
            raise

    @contextlib.contextmanager
    def _explained(self, setting: TrainingSetting) -> Iterator[None]:
        try:
            yield
        except PacaError:
            raise
        except Exception as error:
            raise PacaError(
                f"A step of {setting.method!r} on a model of type {self._config.model_type!r} can't be simulated: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error

    def _reached(self, setting: TrainingSetting) -> Step:
        """Simulate a step again where some parameters got no gradient: an optimizer keeps no states of those."""
        key = (setting.method, setting.targets)
        step = self._simulate(setting, self._unreached.get(key, frozenset()))
        if key not in self._unreached:
            self._unreached[key] = step.unreached
            if step.unreached:
                return self._simulate(setting, step.unreached)
        return step

    def _simulate(self, setting: TrainingSetting, unreached: frozenset[str]) -> Step:
        setting = self._possible(setting)
        model = build(self._config, setting)
        self.kernel_note = kernel_note(model)
        if setting.ranks == 1 and not unreached:
            step = self._from_fewer_blocks(model, setting)
            if step is not None:
                return step
        return _step(model, self._run(model, setting, unreached))

    def _run(self, model: nn.Module, setting: TrainingSetting, unreached: frozenset[str] = frozenset()) -> "Run":
        with sharded.mesh(setting.ranks) as mesh, _simulated(setting):
            materialize_fake(model)
            if mesh is not None:
                sharded.shard(model, mesh)
            return _run(model, setting, self._entered, without_states=unreached)

    def _from_fewer_blocks(self, whole: nn.Module, setting: TrainingSetting) -> Step | None:
        """Find what a step takes from steps of the model with fewer blocks; None if that can't be told from them."""
        fewer = with_fewer_blocks(whole, self._config, lambda config: build(config, setting))
        if fewer is None:
            return None
        few, more = self._run(fewer.few, setting), self._run(fewer.more, setting)
        peak = peak_of_all(few.tracker, more.tracker, fewer.blocks)
        if peak is None or few.unreached or more.unreached:
            return None
        line = fewer.blocks.line
        by_phase = {phase: line(few.by_phase.get(phase, 0), count) for phase, count in more.by_phase.items()}
        return _step(whole, replace(more, paged=line(few.paged, more.paged), by_phase=by_phase), peak)

    def _possible(self, setting: TrainingSetting) -> TrainingSetting:
        return replace(setting, attention="own") if self.own_attention else setting

    def notes(self) -> list[str]:
        """Say what of the model was counted in another way than a GPU would have it."""
        own = "it takes no attention but transformers' own, which is planned with a mask" if self.own_attention else ""
        return [note for note in (own, self.kernel_note) if note]

    def operations(self, setting: TrainingSetting, step: Step) -> Operations:
        """Sum up the operations of a step that `step` found for this setting."""
        forward, backward = step.by_phase.get("forward", 0), step.by_phase.get("backward", 0)
        with self._explained(setting):
            floor = self._floor(setting, step.modules)
        return Operations(
            forward,
            backward,
            step.by_phase.get("recompute", 0),
            ADAMW_OPERATIONS * step.trained + step.by_phase.get("optimizer", 0),
            forward + backward - floor,
        )

    def _floor(self, setting: TrainingSetting, modules: frozenset[str]) -> int:
        """Operations of the frozen model, forward and backward, as far down as gradients have to reach."""
        key = (modules, setting.batch, setting.tokens, setting.pixels, setting.loss, setting.batch_norm)
        if key not in self._floors:
            self._floors[key] = self._floor_of(self._possible(setting), modules)
        return self._floors[key]

    def _floor_of(self, setting: TrainingSetting, modules: frozenset[str]) -> int:
        def run(model: nn.Module) -> int:
            start_gradients_at(model, modules)
            with _simulated(setting), OperationCounter(lambda: "") as counter:
                materialize_fake(model)
                _loss(model.train(), _batch(model, setting), setting).backward()
            return counter.by_phase[""]

        whole = _plain(self._config, setting, "meta")
        fewer = with_fewer_blocks(whole, self._config, lambda config: _plain(config, setting, "meta"))
        if fewer is not None and fewer.blocks.have_alike(modules):
            return fewer.blocks.line(run(fewer.few), run(fewer.more))
        return run(whole)


def simulate(config: Any, setting: TrainingSetting) -> Peak:
    """Find the peak of a training step of a language model or an image classifier, optimizer's state included."""
    return Planner(config).step(setting).peak


@contextlib.contextmanager
def _simulated(setting: TrainingSetting) -> Any:
    on_gpu = setting.attention == "fused" and setting.loss == "chunked"
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints the traceback of what is raised anyway
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), gpu_kernels() if on_gpu else contextlib.nullcontext():
            yield
    finally:
        log.setLevel(level)


def build(config: Any, setting: TrainingSetting, device: str = "meta") -> nn.Module:
    """Make the model in training mode with its method on, on `meta` or a real device for a comparison."""
    from peft import get_peft_model

    from paca.workbench.methods.registry import method_config

    method = find_method(setting.method)
    if not setting.dequantized:
        refuse_unplanned(config, method)
    model = _plain(config, setting, device)
    if method.quantization is not None:
        stored = None if setting.dequantized else stored_quantization(config)
        if stored is None:
            pack_linears(model, setting.dtype)
        else:
            pack_linears(model, setting.dtype, stored.nested, stored.skipped)
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
    if setting.lean:
        quietly_lean(model, loss=False)
    return model.train()


def _plain(config: Any, setting: TrainingSetting, device: str) -> Any:
    attention.register()
    config._attn_implementation = attention.ATTENTIONS[setting.attention] if device == "meta" else None
    family = find_family(config)
    if family.images:
        return images.build(config, setting.dtype, device)
    loss = find_loss(setting.loss)
    if loss.name == "chunked" and not family.chunked:
        raise PacaError(f"The loss of a model of type {config.model_type!r} can't be chunked: leave --loss out.")
    model = family.build(config, setting.dtype, device)
    if device == "meta":
        refuse_token_by_token(model, config.model_type)
    loss.prepare(model)
    return model


def _cast_adapter(model: nn.Module, dtype: torch.dtype | None) -> None:
    for name, parameter in model.named_parameters():
        if dtype is not None and parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)  # TRL's way, which leaves DoRA's magnitudes in float32


def measure(
    model: nn.Module,
    setting: TrainingSetting,
    entered: Callable[[], None] = lambda: None,
    warm_up: bool = False,
    without_states: frozenset[str] = frozenset(),
) -> Step:
    """Take a step with the optimizer's states there, and report it.

    `warm_up` takes a whole step before it, in which a real model arranges its weights; a fake one does not. `entered`
    is called as each module is entered. The parameters of the names in `without_states` never get a gradient, so that
    an optimizer makes no states for them.
    """
    return _step(model, _run(model, setting, entered, warm_up, without_states))


@dataclass(frozen=True)
class Run:
    """A step that was taken.

    Args:
        tracker: What followed it.
        paged: As in `Step`.
        by_phase: Likewise.
        unreached: Likewise.
    """

    tracker: StepTracker
    paged: int
    by_phase: dict[str, int]
    unreached: frozenset[str]


def _run(
    model: nn.Module,
    setting: TrainingSetting,
    entered: Callable[[], None],
    warm_up: bool = False,
    without_states: frozenset[str] = frozenset(),
) -> Run:
    batch = _batch(model, setting)
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in without_states
    ]
    kind = find_optimizer(setting.optimizer)
    optimizer = kind.make(trained, model)
    if warm_up:
        _take(model, batch, setting, optimizer)
    else:
        with_states(optimizer)
    paged = paged_states(optimizer) if kind.paged else []
    with (
        nn.modules.module.register_module_forward_pre_hook(lambda *_: entered()),
        StepTracker(
            model, optimizer, [*batch.values(), *kept_tensors(model), *scales(model)], setting.block, paged
        ) as tracker,
        OperationCounter(lambda: tracker.where()[0]) as counter,
    ):
        unreached = _take(model, batch, setting, optimizer)
    return Run(tracker, sum(state.untyped_storage().nbytes() for state in paged), counter.by_phase, unreached)


def _step(model: nn.Module, run: Run, peak: Peak | None = None) -> Step:
    return Step(
        peak or run.tracker.peak(),
        run.paged,
        run.by_phase,
        sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in run.unreached
        ),
        _trained_modules(model),
        run.unreached,
        _uncalled(model, run.unreached),
    )


def _take(
    model: nn.Module, batch: dict[str, Tensor], setting: TrainingSetting, optimizer: torch.optim.Optimizer
) -> frozenset[str]:
    """Take a step; returns the names of parameters that it was to train and that got no gradient."""
    loss = _loss(model, batch, setting)
    loss.backward()
    del loss
    unreached = frozenset(
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    )
    optimizer.step()
    optimizer.zero_grad()
    return unreached


def _uncalled(model: nn.Module, unreached: frozenset[str]) -> tuple[str, ...]:
    """The layers all of whose trained parameters got no gradient."""
    if not unreached:
        return ()
    layers: dict[str, Any] = adapted_layers(model) or {name.rpartition(".")[0]: None for name in unreached}
    missed = {id(parameter) for name, parameter in model.named_parameters() if name in unreached}
    return tuple(
        name
        for name, layer in layers.items()
        if layer is None or missed.issuperset(map(id, trained_parameters(layer)))
    )


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
