"""`select_connections`: choosing connections by what the model does on data, in one call before training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from ..errors import PacaError
from .config import PacaConfig
from .layers.base import PacaLayer
from .layers.find import paca_layers
from .model import PacaModel
from .select import layer_scores, select
from .selection.activation import MeanSquares
from .selection.gradient import Accumulator, GradientNorms, SummedGradients, recomputed, tapped
from .selection.registry import INDICES, find_strategy

Loss = Callable[[Any, Any], Tensor]


def select_connections(
    model: nn.Module,
    dataloader: Iterable[Any] | None = None,
    loss: Loss | None = None,
    adapter_name: str = "default",
    progress: bool = True,
) -> dict[str, Tensor]:
    """Choose an adapter's connections anew, by the strategy of its configuration.

        config = PacaConfig(r=16, selection="gradient", target_modules="all-linear")
        model = get_peft_model(model, config)
        paca.select_connections(model, dataloader)

    The pretrained model sees up to `selection_batches` batches; nothing is trained. The model's random numbers are
    taken from a generator of their own, seeded with `random_seed`.

    Args:
        model: What `get_peft_model` returned; its updates have to be untrained.
        dataloader: Batches, for a strategy that needs data.
        loss: Computes the loss to be differentiated from the model and a batch; by default `model(**batch).loss`.
        adapter_name: The adapter.
        progress: Whether to show a bar with the time left.

    Returns:
        The chosen indices by layer, ascending, shape `(r,)` each.

    Raises:
        PacaError: If the model has no such adapter, if it was trained already, or if data or loss are missing.
    """
    tuner = tuner_of(model, adapter_name)
    config = tuner.peft_config[adapter_name]
    layers = tuner.choosable_layers(adapter_name)
    trained = [name for name, layer in layers.items() if layer.paca_delta[adapter_name].detach().any()]
    if trained and config.init_weights:
        raise PacaError(
            f"select_connections: adapter {adapter_name!r} was trained already ({trained[0]} has updates), and "
            "they belong to its connections. Select before training."
        )
    data = find_strategy(config.selection).data
    statistics = None
    if data is not None:
        _check_layers(layers, config.selection)
        batches = _batches(dataloader, config, progress)
        statistics = _measure(model, tuner, config, data, layers, batches, loss or model_loss)
    scores = None if config.selection == INDICES else layer_scores(config, layers, statistics)
    chosen = select(config, layers, adapter_name, scores)
    if scores is not None and config.reselect_every is not None:
        tuner.selection_scores = {**tuner.selection_scores, adapter_name: scores}
    tuner.set_connections(adapter_name, chosen)
    return chosen


def model_loss(model: Any, batch: Any) -> Tensor:
    """The loss that a model of transformers computes itself, from a batch of its arguments by name."""
    if not isinstance(batch, Mapping):
        raise PacaError(
            f"select_connections: a batch is a {type(batch).__name__}, but the model is called with a mapping's "
            "entries by name; pass loss=lambda model, batch: … to compute the loss yourself."
        )
    value: Any = getattr(model(**batch), "loss", None)
    return value


def tuner_of(model: nn.Module, adapter_name: str) -> PacaModel:
    """The `PacaModel` in what `get_peft_model` returned, or an error if it has no such adapter."""
    tuner = getattr(model, "base_model", model)
    if not isinstance(tuner, PacaModel):
        raise PacaError(
            f"{type(model).__name__} has no PaCA adapter; pass what get_peft_model(model, PacaConfig(…)) returned."
        )
    if adapter_name not in tuner.peft_config:
        raise PacaError(f"There is no adapter {adapter_name!r}; known are {', '.join(map(repr, tuner.peft_config))}.")
    return tuner


def _check_layers(layers: Mapping[str, PacaLayer], selection: str) -> None:
    others = [name for name, layer in layers.items() if not layer.reads_features_last]
    if others:
        kind = type(layers[others[0]].get_base_layer()).__name__
        raise PacaError(
            f"selection={selection!r} measures linear layers only, and {others[0]} is a {kind}; leave such layers out "
            "with exclude_modules, or take selection='weight'."
        )


def _batches(dataloader: Iterable[Any] | None, config: PacaConfig, progress: bool) -> Iterable[Any]:
    if dataloader is None:
        raise PacaError(
            f"selection={config.selection!r} needs data: pass a dataloader, "
            "paca.select_connections(model, dataloader)."
        )
    most = config.selection_batches
    total = min(most, len(dataloader)) if isinstance(dataloader, Sized) else most
    batches = itertools.islice(dataloader, most)
    return tqdm(batches, desc="selecting", total=total, disable=not progress, leave=False)


def _measure(
    model: nn.Module,
    tuner: PacaModel,
    config: PacaConfig,
    data: str,
    layers: dict[str, PacaLayer],
    batches: Iterable[Any],
    loss: Loss,
) -> dict[str, Tensor]:
    """Run the pretrained model over the batches and return what the strategy asks for, by layer."""
    device = next(iter(layers.values())).weight_device()
    statistic: MeanSquares | Accumulator
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(_pretrained(tuner))
        stack.enter_context(_own_random_numbers(config.random_seed))
        stack.enter_context(_mode(model, training=data == "gradient"))
        if data == "activation":
            statistic = MeanSquares()
            stack.enter_context(statistic.watching(layers))
        else:
            statistic = SummedGradients() if config.gradient_mode == "sum" else GradientNorms()
            if config.gradient_mode == "norm":
                stack.enter_context(recomputed(tuner.model))
            stack.enter_context(tapped(layers, statistic))
        for batch in batches:
            batch = dict(batch) if isinstance(batch, Mapping) else batch  # transformers' own kinds are no dictionaries
            value: Any = loss(model, tree_map_only(Tensor, lambda tensor: tensor.to(device), batch))
            seen += 1
            if data == "gradient":
                _require_differentiable(value)
                value.backward()
    if not seen:
        raise PacaError(f"selection={config.selection!r} needs data, but the dataloader is empty.")
    result = statistic.result()
    missing = [name for name in layers if name not in result]
    if missing:
        raise PacaError(
            f"selection={config.selection!r}: no batch went through {missing[0]}"
            f"{f' and {len(missing) - 1} more layers' if len(missing) > 1 else ''}; leave them out with "
            "exclude_modules, or pass data that uses them."
        )
    return result


def _require_differentiable(value: Any) -> None:
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise PacaError(
            "select_connections: a batch gave no loss that can be differentiated (does it have labels?). Pass batches "
            "with labels, or loss=lambda model, batch: … to compute it yourself."
        )


@contextmanager
def _pretrained(tuner: PacaModel) -> Iterator[None]:
    """The base model without its adapters; no gradient is left on what is trained besides them."""
    trained = [parameter for parameter in tuner.parameters() if parameter.requires_grad]
    enabled = [layer for layer in paca_layers(tuner).values() if not layer.disable_adapters]
    for layer in enabled:
        layer.enable_adapters(False)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for layer in enabled:
            layer.enable_adapters(True)


@contextmanager
def _own_random_numbers(seed: int | None) -> Iterator[None]:
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was
