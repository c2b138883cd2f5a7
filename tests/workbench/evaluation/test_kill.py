"""SIGKILL at random moments of scoring, answering, judging and exporting; the next process goes on or begins anew."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from tests.paths import ROOT
from tests.workbench.evaluation.judge_server import Judge, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks"),
]
DELAYS = random.Random(1)


def drive(*plans):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "tests.workbench.evaluation.kill_driver", json.dumps(plans)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def plan(argv, tmp_path, kills):
    """One run in peace, then one killed at moments that lie evenly over the first one's length, each moved at random.

    The early moments come first: what is done already makes the next process quicker.
    """
    moments = [DELAYS.uniform(index / kills, (index + 1) / kills) for index in range(kills)]
    return {"calm": argv("calm"), "killed": argv("killed"), "folder": str(tmp_path / "killed"), "kills": moments}


def assert_killed_and_whole(log, kills):
    assert [entry["whole"] for entry in log] == [True] * (kills + 1)
    assert log[-1]["status"] == 0
    assert -9 in [entry["status"] for entry in log]


def result(folder):
    found = json.loads((folder / "result.json").read_text())
    return {key: found[key] for key in found if key not in ("versions", "model")}


def test_scoring_goes_on(adapter, mmlu_data, tmp_path):
    def argv(out):
        words = ["--tasks", "mmlu", "--mmlu-data", str(mmlu_data), "--output", str(tmp_path / out)]
        return ["eval", adapter, *words]

    (log,) = drive(plan(argv, tmp_path, 7))
    assert_killed_and_whole(log, 7)
    assert result(tmp_path / "killed" / "mmlu") == result(tmp_path / "calm" / "mmlu")


def test_answering_and_judging_go_on(adapter, bench, tmp_path):
    def verdict(body):
        time.sleep(0.05)
        return f"[[{len(body['messages'][1]['content']) % 10 + 1}]]"

    with serving(Judge(verdict)) as judge:

        def argv(out):
            words = ["--mt-bench", str(bench), "--output", str(tmp_path / out), "--max-new-tokens", "8"]
            where = ["--judge-url", judge.url, "--judge-model", "judge"]
            return ["eval", adapter, "--tasks", "mt-bench", *words, *where]

        (log,) = drive(plan(argv, tmp_path, 7))
    assert_killed_and_whole(log, 7)
    for folder in ("mt-bench", "mt-bench/judge-judge"):
        assert result(tmp_path / "killed" / folder) == result(tmp_path / "calm" / folder)
    for file in ("answers.jsonl", "judge-judge/verdicts.jsonl"):
        assert (tmp_path / "killed/mt-bench" / file).read_text() == (tmp_path / "calm/mt-bench" / file).read_text()


def test_an_export_is_whole_or_not_there(adapter, tmp_path):
    def argv(out):
        return ["export", adapter, "--to", "lora", "--output", str(tmp_path / out / "lora"), "--overwrite"]

    (log,) = drive(plan(argv, tmp_path, 6))
    assert_killed_and_whole(log, 6)
    ours, theirs = (sorted(path.name for path in (tmp_path / out / "lora").iterdir()) for out in ("calm", "killed"))
    assert ours == theirs
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["lora"]  # nothing half-written is left behind
    weights = "adapter_model.safetensors"
    assert (tmp_path / "calm/lora" / weights).read_bytes() == (tmp_path / "killed/lora" / weights).read_bytes()
