"""The vision benchmark counts on fake tensors what a real step allocates, and each method is what its name says."""

import json

import pytest
import torch

from methods import FLOOR
from vision import main, make_step, peak_bytes, prepare
from vision_methods import METHODS, NETWORKS

TINY_VIT = NETWORKS["tiny-vit"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", TINY_VIT.methods)
def test_a_fake_step_allocates_what_a_real_one_does(method, autocast):
    fake, real = (peak_bytes(TINY_VIT, method, 2, 224, autocast, real=real) for real in (False, True))
    assert fake == real
    assert peak_bytes(TINY_VIT, method, 4, 224, autocast) > fake, "the batch counts"


def test_what_is_trained():
    trained = {name: prepare(TINY_VIT, name) for name in (FLOOR, "full", "lora", "paca")}
    sizes = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in trained.items()}
    assert sizes[FLOOR] == 0
    assert sizes["full"] == sum(p.numel() for p in trained["full"].parameters())
    head = 32 * 10 + 10
    assert sizes["paca"] == 2 * 16 * (4 * 32 + 64 + 32) + head
    assert sizes["lora"] == 2 * 8 * (4 * 64 + 2 * 96) + head


def test_only_a_network_that_trains_nothing_computes_the_input_gradient():
    floor, paca = (make_step(prepare(TINY_VIT, method), 2, 224) for method in (FLOOR, "paca"))
    assert floor.pixels.requires_grad
    assert not paca.pixels.requires_grad
    before = [parameter.detach().clone() for parameter in paca.trained]
    paca.run()
    assert any(not torch.equal(*pair) for pair in zip(before, paca.trained, strict=True))


def test_every_network_names_methods_that_there_are():
    assert all(set(network.methods) <= set(METHODS) for network in NETWORKS.values())


def test_a_run_prints_tables_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    arguments = ["--networks", "tiny-vit", "--batch", "2", "--time-batch", "2", "--steps", "2", "--json", str(file)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| method | float32, MiB | × lora | bfloat16 autocast, MiB | × lora |" in printed
    assert "| floor again |" in printed
    found = json.loads(file.read_text())["tiny-vit"]
    assert set(found["peak_bytes"]["float32"]) == {"lora", "paca"}
    assert set(found["seconds"]) == {"floor", "floor again", "lora", "paca"}
