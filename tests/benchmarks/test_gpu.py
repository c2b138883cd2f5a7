"""The kit for a GPU, on the CPU with a tiny shape: every part runs, and what can't be measured is named."""

import dataclasses
import json

import pytest
import torch

import gpu
from methods import METHODS
from models import load_base
from paca.profiling.steps import TrainingStep

TINY = ("--shape", "tiny", "--device", "cpu", "--steps", "1", "--tokens", "8", "--longest", "8")


def run(tmp_path, *words):
    file = tmp_path / "gpu.json"
    assert gpu.main([*TINY, "--json", str(file), *words]) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_every_part_runs_and_its_rows_are_written(tmp_path, capsys):
    result = run(tmp_path)
    printed = capsys.readouterr().out
    parts = result["parts"]
    assert [name for name in result["left_out"] if not name.startswith("nf4")] == []
    assert list(parts["steps"]) == [row.name for row in gpu.STEPS] + ["floor again"]
    assert parts["steps"]["paca"]["peak_bytes"] < parts["steps"]["lora"]["peak_bytes"]
    assert parts["steps"]["paca, lean"]["peak_bytes"] < parts["steps"]["paca"]["peak_bytes"]
    assert parts["longest"]["dora"] == 8
    assert set(parts["batches"]["paca"]) == {"1", "2"}
    assert parts["compiled"]["floor, lean"]["eager"]["kept_bytes"] < parts["compiled"]["floor"]["eager"]["kept_bytes"]
    assert "time of a step, PaCA against LoRA | −22 % |" in printed
    assert "(lora-base-dtype)" in printed


def test_rows_that_do_not_fit_are_left_out_and_named(tmp_path, monkeypatch, capsys):
    def out_of_memory(model, rank):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def broken(model, rank):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(METHODS, "lora", dataclasses.replace(METHODS["lora"], prepare=out_of_memory))
    monkeypatch.setitem(METHODS, "paca", dataclasses.replace(METHODS["paca"], prepare=broken))
    monkeypatch.setattr(gpu, "STEPS", (gpu.Row("floor"), gpu.Row("lora"), gpu.Row("paca", lean=True)))
    monkeypatch.setattr(gpu, "LONGEST", (gpu.Row("lora"), gpu.Row("floor")))
    result = run(tmp_path, "--parts", "steps", "longest")
    assert list(result["parts"]["steps"]) == ["floor", "floor again"]
    assert result["parts"]["longest"] == {"lora": 0, "floor": 8}
    assert result["left_out"] == {
        "steps: lora": "it does not fit the GPU's memory",
        "steps: paca, lean": "RuntimeError: first line",
    }
    assert "left out: steps: lora: it does not fit the GPU's memory" in capsys.readouterr().out


def test_what_comes_after_the_time_is_left_out(tmp_path):
    result = run(tmp_path, "--parts", "steps", "--minutes", "0")
    assert result["parts"]["steps"] == {}
    assert set(result["left_out"].values()) == {"the time was up"}


def test_a_base_model_that_does_not_fit_is_said(tmp_path, monkeypatch):
    def out_of_memory(kit):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu.Kit, "_load", out_of_memory)
    reason = "the base model does not fit the GPU's memory"
    assert run(tmp_path, "--parts", "steps", "nf4")["left_out"] == {"steps: all": reason, "nf4: all": reason}


def test_rows_of_nf4_need_bitsandbytes(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path, "--parts", "nf4")["left_out"] == {"nf4: all": "bitsandbytes is not installed"}


def test_a_machine_without_a_gpu_is_told_how_to_try_it_out(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "steps"])
    assert "torch finds no GPU here; try the kit out with --shape tiny --device cpu" in capsys.readouterr().err


def test_saved_bytes_are_those_of_a_tracker_in_eager_and_less_when_compiled():
    base = load_base("tiny", torch.float32, torch.device("cpu"))
    ids = torch.randint(256, (1, 16))
    step = TrainingStep(
        METHODS["floor"].prepare(base, 4), {"inputs_embeds": base.model.embed_tokens(ids), "labels": ids}
    )
    eager = gpu.saved_bytes(step)
    assert eager == pytest.approx(step.kept_bytes(), rel=0.02)
    torch.compiler.reset()
    step.model = torch.compile(step.model, backend="aot_eager_decomp_partition")
    assert gpu.saved_bytes(step) < eager
