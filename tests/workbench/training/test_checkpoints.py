"""Which checkpoints can be gone on from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from paca.workbench.training.checkpoints import (
    ALL_RANKS,
    MODEL_SHARDS,
    OPTIMIZER_SHARDS,
    checkpoint_folders,
    is_complete,
    last_complete,
)

FILES = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def make_checkpoint(folder):
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "trainer_state.json"):
        (folder / name).write_text(json.dumps({"a": 1}))
    save_file({"a": torch.ones(9)}, folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(9)}, folder / name)
    return folder


def test_a_whole_checkpoint(tmp_path):
    assert is_complete(make_checkpoint(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("name", [*FILES, "trainer_state.json"])
def test_a_file_that_is_missing_or_cut_short(tmp_path, name):
    folder = make_checkpoint(tmp_path / "checkpoint-2")
    content = (folder / name).read_bytes()
    for kept in (0, len(content) // 2, len(content) - 1):
        (folder / name).write_bytes(content[:kept])
        assert not is_complete(folder), kept
    (folder / name).unlink()
    assert not is_complete(folder)


def test_of_several_ranks_only_when_all_have_written(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-2")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert not is_complete(folder)
    (folder / ALL_RANKS).write_text("2")
    assert is_complete(folder)


def test_shards_stand_for_the_whole_files(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-2")
    for name in FILES[:3]:
        (folder / name).unlink()
    for name in (MODEL_SHARDS, OPTIMIZER_SHARDS):
        assert not is_complete(folder)
        (folder / name).mkdir()
        (folder / name / ".metadata").touch()
    assert is_complete(folder)


def test_the_last_complete_one_by_number_and_broken_ones_after_it_are_deleted(tmp_path):
    for step in (2, 10, 12):
        make_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-12" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-old").mkdir()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-2", "checkpoint-10"]


def test_none(tmp_path):
    assert last_complete(tmp_path) is None
