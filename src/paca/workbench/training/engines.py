"""Which engine trains on several processes, what it needs of a run, and what it can't train.

Engines are chosen where `accelerate launch` and Trainer look for them: accelerate's config file, or the recipe's
`training.fsdp` and `training.deepspeed`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from paca.errors import PacaError


def use_engine(trainer: Any) -> None:
    """Have a trainer use the engine that was asked for; a PacaError says why it can't hold columns or do this run."""
    if trainer.is_deepspeed_enabled:
        raise PacaError(
            "paca finetune does not train with DeepSpeed. Shard with FSDP2, which does what ZeRO-3 does: launch with "
            "recipes/accelerate/fsdp2.yaml. Scripts may use ZeRO; docs/distributed.md shows how."
        )
    _shard_on_cpus(trainer)
    problems = [*_fsdp_problems(trainer), *_selection_problems(trainer)] if trainer.is_fsdp_enabled else []
    if problems:
        raise PacaError("\n".join(["This run can't be sharded as asked:", *(f"  {line}" for line in problems)]))


def shards(trainer: Any) -> bool:
    """Whether FSDP trains the model, so that no rank holds the whole of it once training has started."""
    return bool(trainer.is_fsdp_enabled)


def _shard_on_cpus(trainer: Any) -> None:
    """Let FSDP run on CPUs as well, where accelerate passes it over without a word and would train with DDP."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    state, options = trainer.accelerator.state, trainer.args.fsdp_plugin_args
    asked = options is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or state.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin(**(options or {}))
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    if plugin.cpu_offload:
        plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # which takes a GPU's driver
    state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def _fsdp_problems(trainer: Any) -> Iterator[str]:
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version == 1:
        yield (
            "FSDP1 flattens parameters, so that a rank holds stretches of a layer in which neither columns nor their "
            "updates can be found. Set fsdp_version: 2 in accelerate's fsdp_config; recipes/accelerate/fsdp2.yaml is "
            "one that works."
        )
    elif "SHARDED_STATE_DICT" not in str(plugin.state_dict_type):
        yield (
            f"fsdp_state_dict_type: {plugin.state_dict_type.name} gathers the whole model on rank 0 for each "
            "checkpoint. Set fsdp_state_dict_type: SHARDED_STATE_DICT (in a recipe, "
            "training.fsdp_config.state_dict_type); the adapter is written as one ordinary file at the end."
        )


def _selection_problems(trainer: Any) -> Iterator[str]:
    for config in getattr(trainer.model, "peft_config", {}).values():
        if getattr(config, "reselect_every", None):
            yield (
                "method.reselect_every: connections can't move in a sharded model. Leave it out, or train without "
                "sharding (recipes/accelerate/ddp.yaml)."
            )
    if getattr(trainer.model.base_model, "unselected", ()):
        yield (
            "method.selection needs data, and thus the whole model on every rank. Choose the connections in a run "
            "without sharding first and give their file as method.selection, or take a strategy that needs no data."
        )


def adapter_state(trainer: Any) -> dict[str, Any] | None:
    """The state dict to give to `save_pretrained`, None where the model has the adapter whole; every rank calls it."""
    from paca import full_adapter_state_dict

    return full_adapter_state_dict(trainer.model, trainer.model.active_adapter) if shards(trainer) else None


@contextmanager
def prepared_by_parameters(trainer: Any) -> Iterator[None]:
    """Inside a `with` block, show accelerate parameters only in a model's state dict, when it shards the model."""
    from paca.tuner.distributed import without_indices

    prepare = trainer.accelerator.prepare

    def without(*args: Any, **kwargs: Any) -> Any:
        with without_indices(trainer.model):
            return prepare(*args, **kwargs)

    with mock.patch.object(trainer.accelerator, "prepare", without if shards(trainer) else prepare):
        yield


class _StoppedError(Exception):
    """Training was left before its first step."""


def load_only(trainer: Any, checkpoint: Path) -> None:
    """Load a complete checkpoint without training on."""
    if not shards(trainer):
        trainer.model.load_adapter(str(checkpoint), trainer.model.active_adapter, is_trainable=True)
        return

    def stop() -> None:
        raise _StoppedError

    before_training(trainer, stop)  # an engine loads its checkpoints into the model that it has sharded
    try:
        with prepared_by_parameters(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    except _StoppedError:
        return


def before_training(trainer: Any, act: Callable[[], Any]) -> None:
    """Run `act` when the engine has got the model, before the first step.

    It must not draw random numbers that training would miss.
    """
    from transformers import TrainerCallback

    class Before(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            act()

    trainer.add_callback(Before())
