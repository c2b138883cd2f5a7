"""Checkpoints of one engine for another: whole files, as Trainer writes them, and shards, as FSDP2 does.

Shards are read by any number of ranks that FSDP2 uses, whole files by any number that it does not. What lies between
is done here, by one process, when a run is resumed: an adapter and its optimizer's state are small.
"""

import shutil
from pathlib import Path
from typing import Any

from paca.workbench.base.files import write_folder
from paca.workbench.training.checkpoints import MODEL_SHARDS, OPTIMIZER_SHARDS, is_sharded

_WHOLE = ("adapter_model.safetensors", "optimizer.pt")
_PARTS = {"model": MODEL_SHARDS, "optimizer": OPTIMIZER_SHARDS}


def for_engine(trainer: Any, checkpoint: Path | None, shards: bool) -> Path | None:
    """Rewrite a checkpoint, if need be, so that a trainer's engine can load it; one process does.

    The trainer has not started, and its model has the whole adapter; `shards` says whether the engine reads shards.
    Returns the same folder.
    """
    if checkpoint is None or is_sharded(checkpoint) == shards:
        return checkpoint
    rewrite = _to_shards if shards else _to_whole

    def write(folder: Path) -> None:
        shutil.copytree(
            checkpoint, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_WHOLE, *_PARTS.values())
        )
        rewrite(trainer, checkpoint, folder)

    write_folder(checkpoint, write)
    trainer.optimizer = None  # made anew, once the engine has the parameters
    return checkpoint


def _to_whole(trainer: Any, checkpoint: Path, folder: Path) -> None:
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = trainer.model
    adapter = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    _read(checkpoint, "model", adapter)
    save_file(adapter, folder / _WHOLE[0], metadata={"format": "pt"})
    model.peft_config[model.active_adapter].save_pretrained(folder)
    optimizer = trainer.create_optimizer()
    state = get_optimizer_state_dict(model, optimizer)
    _read(checkpoint, "optimizer", state)
    set_optimizer_state_dict(model, optimizer, state)
    torch.save(optimizer.state_dict(), folder / _WHOLE[1])


def _to_shards(trainer: Any, checkpoint: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    _write(folder, "model", load_file(checkpoint / _WHOLE[0]))
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(torch.load(checkpoint / _WHOLE[1], map_location="cpu", weights_only=True))
    _write(folder, "optimizer", get_optimizer_state_dict(trainer.model, optimizer))


def _read(checkpoint: Path, part: str, values: dict[str, Any]) -> None:
    """Fill in place what the shards hold of a nest of whole tensors."""
    import torch.distributed.checkpoint as shards

    reader = shards.FileSystemReader(checkpoint / _PARTS[part])
    held = reader.read_metadata().state_dict_metadata
    known = {
        key: value for key, value in values.items() if any(f"{name}.".startswith(f"{part}.{key}.") for name in held)
    }
    shards.load({part: known}, storage_reader=reader, no_dist=True)
    values.update(known)


def _write(folder: Path, part: str, values: dict[str, Any]) -> None:
    import torch.distributed.checkpoint as shards

    shards.save({part: values}, storage_writer=shards.FileSystemWriter(folder / _PARTS[part]), no_dist=True)
