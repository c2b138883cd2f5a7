"""A worker that dies: all are started again, as torchrun's --max-restarts does, and go on from the last checkpoint."""

import os
import random
import subprocess
import sys

import pytest
from tests.distributed.dying import kill_in
from tests.distributed.launch import on_ranks
from tests.paths import ROOT
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune

STEPS, KILLS = 24, 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A run with dropout, so that a checkpoint whose random numbers are lost would show."""
    folder = tmp_path_factory.mktemp("elastic")
    content = recipe_content(save_model(folder / "model"), write_text(folder / "text.txt"), folder / "run")
    content["training"].update(dataloader_drop_last=True, save_steps=2, max_steps=STEPS)
    content["method"]["random_seed"] = 0
    return write_recipe(folder / "recipe.yaml", content)


def run(rank, path, output, victim=None, step=0, moment=""):
    if rank == victim:
        kill_in(step, moment)
    return finetune(read_recipe(path, [], str(output)), resume=True)["steps"]


def adapter(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    on_ranks(run, recipe, folder)
    return adapter(folder)


@pytest.mark.slow
def test_killed_at_ten_random_steps(recipe, undisturbed, tmp_path):
    draw = random.Random(0)
    for kill, step in enumerate(sorted(draw.sample(range(1, STEPS), KILLS))):
        victim, moment = draw.choice([0, 1]), draw.choice(["before", "within", "after", "saving"])
        with pytest.raises(AssertionError, match=rf"rank {victim}: no answer; exit code -9"):
            on_ranks(run, recipe, tmp_path / "killed", victim, step, moment)
        assert not (tmp_path / "killed" / "adapter").exists(), kill
    assert on_ranks(run, recipe, tmp_path / "killed") == [STEPS, STEPS]
    assert adapter(tmp_path / "killed") == undisturbed


@pytest.mark.slow
def test_torchrun_starts_all_again(recipe, undisturbed, tmp_path):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    verb = ["-m", "tests.distributed.dying", "finetune", str(recipe), "--output", str(tmp_path / "run"), "--resume"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "DIED": str(tmp_path / "died"),
        # Workers that start again would look for each other under the addresses of those that died: plain torch, too.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    command = [sys.executable, "-m", *launcher, *verb]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert done.stdout.count("improved: held-out perplexity") == 1
    assert adapter(tmp_path / "run") == undisturbed
