"""The benchmark of switching times adapters that differ, and PaCA's leave the base weights as they were."""

import json

import pytest
import torch

from generate import BASE, BASE_AGAIN
from models import load_base
from switch import LORA, MERGED, MODELS, PACA, RUNS, adapt, add_adapters, held_bytes, main, pretrained, ways

IDS = torch.arange(8)[None]


@pytest.fixture(scope="module")
def base():
    return load_base("tiny", torch.float32, torch.device("cpu")).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_every_way_comes_to_the_same_adapter_and_back(base):
    models = {name: adapt(base, method, 16) for name, method in MODELS.items()}
    for model in models.values():
        add_adapters(model, 3)
    alone = {}
    for name, model in models.items():
        for adapter in "012":
            model.set_adapter(adapter)
            alone[name, adapter] = logits(model)
        assert not torch.allclose(alone[name, "0"], alone[name, "1"], atol=1e-3)
        assert not torch.allclose(alone[name, "0"], logits(base), atol=1e-3)
    for name, way in ways(models).items():
        way.begin("0")
        for change in (way.change, way.switch):
            for adapter in "12":
                change(adapter)
                same = torch.allclose(logits(way.model), alone[LORA if name == MERGED else name, adapter], atol=1e-4)
                assert same, (name, adapter)
        way.end()
    assert pretrained(models[PACA], base)
    assert pretrained(models[RUNS], base)
    assert not pretrained(models[LORA], base), "merging rounds"
    values = 2 * 16 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    assert held_bytes(models[PACA], "1") == 4 * values + 8 * 2 * 7 * 16


def test_the_base_weights_are_the_same_bits_after_a_thousand_switches_over_64_adapters(base):
    model = adapt(base, "paca", 4)
    add_adapters(model, 64)
    assert len(model.peft_config) == 64
    said = set()
    for number in range(1000):
        model.set_adapter(str(number * 7 % 64))
        said.add(float(logits(model).sum()))
        if number % 100 == 0:
            assert pretrained(model, base)
    assert pretrained(model, base)
    assert len(said) == 64


def test_a_run_prints_what_a_switch_takes_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = ["--config", "tiny", "--adapters", "1", "2", "--rounds", "2", "--new-tokens", "3", "--json", str(file)]
    assert main(words) == 0
    result = json.loads(file.read_text())
    assert list(result["adapters"]) == ["1", "2"]
    for found in result["adapters"].values():
        assert list(found) == [BASE, BASE_AGAIN, PACA, RUNS, LORA, MERGED]
        assert found[BASE]["token_to_base"] == 1
        assert all(found[name]["switch_ms"] > 0 for name in (PACA, RUNS, LORA, MERGED))
    assert result["base_weights_bit_identical"] == {PACA: True, RUNS: True, LORA: False}
    printed = capsys.readouterr().out
    assert "paca switches " in printed
    assert "paca: base weights bit-identical; " in printed
