"""Connections that move: every N steps others are trained, within the memory of rank `r`.

The columns trained so far stay as they are in the weights. `save_pretrained` writes one ordinary adapter of all that
were ever trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import PacaError
from ..method.columns.retired import saved_settings
from .select import needs_data, select
from .select_connections import tuner_of


def reselect(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, adapter_name: str = "default"
) -> dict[str, Tensor]:
    """Train other connections from now on.

    The adapter's strategy chooses them among those not visited yet; once all were, a new sweep begins. A strategy that
    needs data goes by what it measured before training.

        if step % 20 == 0:
            paca.reselect(model, optimizer)

    Args:
        model: What `get_peft_model` returned, with `reselect_every` in its configuration.
        optimizer: Its state of the columns trained so far is dropped, so that the new ones start clean.
        adapter_name: The adapter.

    Returns:
        The connections trained from now on, by layer.

    Raises:
        PacaError: If the adapter was not made for moving.
    """
    tuner = tuner_of(model, adapter_name)
    config = tuner.peft_config[adapter_name]
    if config.reselect_every is None:
        raise PacaError(
            f"reselect: adapter {adapter_name!r} has connections that stay; pass PacaConfig(reselect_every=20), say."
        )
    layers = tuner.choosable_layers(adapter_name)
    scores = tuner.selection_scores.get(adapter_name)
    if scores is None and needs_data(config):
        raise PacaError(
            f"reselect: selection={config.selection!r} needs data: call paca.select_connections(model, "
            "dataloader) before training, also before training resumes from a checkpoint."
        )
    visited = {name: layer.visited(adapter_name) for name, layer in layers.items()}
    chosen = select(config, layers, adapter_name, scores, visited)
    for name, layer in layers.items():
        layer.move_connections(adapter_name, chosen[name])
        if optimizer is not None:
            optimizer.state.pop(layer.paca_delta[adapter_name], None)
    config._saved_as = saved_settings(layers, adapter_name)
    return chosen


class ReselectCallback(TrainerCallback):
    """Calls `reselect` every `reselect_every` steps of a `Trainer`.

    trainer.add_callback(paca.ReselectCallback())
    """

    def __init__(self) -> None:
        self._rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an optimizer step, before a checkpoint is written."""
        if state.global_step >= state.max_steps:
            return  # no step is left that would train others
        for name, config in _moving(kwargs["model"]).items():
            if state.global_step % config.reselect_every == 0:
                reselect(kwargs["model"], kwargs["optimizer"], name)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lower the learning rates while new connections warm up."""
        groups = kwargs["optimizer"].param_groups
        self._rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * _warm(kwargs["model"], state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the learning rates back, for the scheduler."""
        for group, rate in zip(kwargs["optimizer"].param_groups, self._rates, strict=True):
            group["lr"] = rate


def _moving(model: Any) -> dict[str, Any]:
    configs = getattr(model, "peft_config", {})
    return {name: config for name, config in configs.items() if getattr(config, "reselect_every", None)}


def _warm(model: Any, steps_done: int) -> float:
    """The factor of the learning rate for the step after `steps_done`."""
    factor = 1.0
    for config in _moving(model).values():
        since = steps_done % config.reselect_every
        if steps_done >= config.reselect_every and since < config.reselect_warmup:
            factor = min(factor, (since + 1) / (config.reselect_warmup + 1))
    return factor
