"""What a step dispatches is counted; per adapted layer it stays what it is."""

import json

import pytest
import torch

from launches import KernelCounter, Launches, build_parser, launches, main, narrow_llama
from methods import METHODS
from paca.method.columns.together import has_triton
from step import prepare


def test_what_counts_as_a_kernel():
    x = torch.randn(4, 6)
    with KernelCounter() as counter:
        y = x.t().reshape(3, 8).detach()  # a copy: the transposed can't be viewed so
        torch.empty_like(x).view(-1)
        (y @ y.t()).add_(1)
    assert dict(counter.counts) == {"clone": 1, "mm": 1, "add_": 1}


@pytest.mark.parametrize("layers", [7, 14])
def test_launches_of_each_adapted_layer(layers):
    """A layer reads, adds and writes its columns and gathers its input's; backward multiplies, and copies back."""
    steps = prepare(narrow_llama(layers), [METHODS[name] for name in ("floor", "paca", "lora")], tokens=4, rank=16)
    floor = launches(steps["floor"])
    assert launches(steps["paca"]).beyond(floor) == Launches(4 * layers, 2 * layers, 2)
    assert launches(steps["paca"]).total < launches(steps["lora"]).total


@pytest.mark.parametrize(("layers", "budget"), [(28, 76), (56, 132)])
def test_one_kernel_for_all_layers_keeps_to_the_budget(kernels_on_cpu, layers, budget):
    """A layer gathers its input's columns and multiplies; two kernels move the columns of all layers."""
    steps = prepare(narrow_llama(layers), [METHODS[name] for name in ("floor", "paca")], tokens=4, rank=16)
    found = launches(steps["paca"]).beyond(launches(steps["floor"]))
    assert found == Launches(layers + 1, layers + 1, 2)
    assert found.total <= budget


def test_the_benchmark_itself(tmp_path, capsys):
    words = ["--layers", "7", "--methods", "paca", "--steps", "1", "--json", str(tmp_path / "found.json")]
    threads = torch.get_num_threads()
    assert main(words) == 0
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["layers"]["7"]
    assert found["paca"]["total"] == 44
    assert found["floor again"]["total"] == 0
    printed = capsys.readouterr().out
    assert "| paca | 44 | 6.29 | 28 | 14 | 2 |" in printed
    if has_triton():
        assert "| paca, one kernel | 18 | 2.57 | 8 | 8 | 2 |  |" in printed


def test_layers_that_are_no_whole_blocks_are_refused(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--layers", "30"])
    assert "30 layers are no whole blocks: write a multiple of 7." in capsys.readouterr().err
