"""SIGKILL at any moment, resume, and end with the adapter file of a run that nobody disturbed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.paths import ROOT
from tests.workbench.tiny import write_jsonl, write_recipe

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks"),
]
MOMENTS = [
    "before the first evaluation is written",
    "before the first step",
    "between two checkpoints",
    "before anything of a checkpoint",
    "inside the trainer's state",
    "before the random state",
    "inside the optimizer's file",
    "before old checkpoints are deleted",
    "after a checkpoint's adapter",
    "inside the adapter's folder",
    "before the picture",
    "before metrics.json is in place",
]


@pytest.fixture
def make_recipe(content, tmp_path):
    """A recipe of eight steps that draws random numbers in each, under a name of its own."""
    content["training"].update(max_steps=8, save_steps=2, lr_scheduler_type="cosine", dataloader_drop_last=True)
    content["method"]["modules_to_save"] = ["norm"]

    def make(name, **training):
        own = {**content, "training": {**content["training"], **training}, "output_dir": str(tmp_path / name)}
        return write_recipe(tmp_path / f"{name}.yaml", own)

    return make


def drive(*plans):
    """Run recipes, each killed as planned, and return a log per recipe with an entry per process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [
        sys.executable,
        "-m",
        "tests.workbench.training.kill_driver",
        json.dumps([(str(r), plan) for r, plan in plans]),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def metrics(recipe):
    return json.loads((Path(read_recipe(recipe).output_dir) / "metrics.json").read_text())


def adapter_file(recipe):
    return (Path(read_recipe(recipe).output_dir) / "adapter" / "adapter_model.safetensors").read_bytes()


def test_killed_at_each_delicate_moment_in_one_run(make_recipe):
    undisturbed, killed = make_recipe("undisturbed"), make_recipe("killed")
    calm, log = drive((undisturbed, []), (killed, MOMENTS))
    assert [entry["steps"] for entry in calm] == [8]
    assert [(entry["kill"], entry["status"]) for entry in log] == [*((moment, -9) for moment in MOMENTS), (None, 0)]
    assert adapter_file(killed) == adapter_file(undisturbed)
    for key in ("before", "after", "loss_curve", "tokens", "steps"):
        assert metrics(killed)[key] == metrics(undisturbed)[key], key


def test_a_preference_run_is_resumed_alike(make_recipe, content, tmp_path):
    numbers = range(40)
    pairs = [
        {"prompt": f"Number {n}", "chosen": f" is {n} cats", "rejected": f" or {n} dogs and more"} for n in numbers
    ]
    content["task"] = "preference"
    content["data"] = {"train": str(write_jsonl(tmp_path / "pairs.jsonl", pairs)), "holdout_every": 5}
    content["training"]["max_length"] = 64
    undisturbed, killed = make_recipe("undisturbed"), make_recipe("killed")
    moments = ["between two checkpoints", "after a checkpoint's adapter", "inside the adapter's folder"]
    calm, log = drive((undisturbed, []), (killed, moments))
    assert [entry["steps"] for entry in calm] == [8]
    assert [(entry["kill"], entry["status"]) for entry in log] == [*((moment, -9) for moment in moments), (None, 0)]
    assert adapter_file(killed) == adapter_file(undisturbed)
    for key in ("before", "after", "loss_curve", "margin_curve"):
        assert metrics(killed)[key] == metrics(undisturbed)[key], key


def test_killed_at_random_moments(make_recipe):
    undisturbed, runs = make_recipe("undisturbed"), [make_recipe("a"), make_recipe("b")]
    delays = random.Random(0)
    # A run takes about two seconds, twice or thrice that on a busy machine.
    plans = [(run, [delays.uniform(0.2, 3.0) for _ in range(10)]) for run in runs]
    for log in drive((undisturbed, []), *plans):
        assert log[-1]["status"] == 0
    for run in runs:
        assert adapter_file(run) == adapter_file(undisturbed)


def test_resuming_loses_at_most_the_steps_since_the_last_checkpoint(make_recipe):
    plan = ["before anything of a checkpoint", "inside the trainer's state", "between two checkpoints"]
    (log,) = drive((make_recipe("killed"), plan))
    # Killed as checkpoint-4 was about to be written; going on from 2, as it was all but written; from 2 again, before
    # step 6, with checkpoint-4 whole at last; from 4 to the end. The step that is killed is not counted.
    assert [entry["steps"] for entry in log] == [4, 2, 3, 4]


def test_a_run_killed_after_its_last_step_takes_no_other(make_recipe):
    """Trainer takes one more step when it resumes at the last, with a learning rate of zero at first: twice shows."""
    undisturbed, killed = make_recipe("undisturbed"), make_recipe("killed")
    _, log = drive((undisturbed, []), (killed, ["before the picture"] * 3))
    assert [entry["steps"] for entry in log] == [8, 0, 0, 0]
    assert adapter_file(killed) == adapter_file(undisturbed)


def test_other_random_numbers_give_another_adapter(make_recipe, content, tmp_path):
    """The equalities above would mean little if dropout and the order of the data did not matter."""
    runs = [make_recipe("a"), make_recipe("b", data_seed=77)]
    for path in runs:
        finetune(read_recipe(path))
    assert adapter_file(runs[0]) != adapter_file(runs[1])
