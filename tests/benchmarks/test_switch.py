"""The benchmark of switching times adapters that differ, and PaCA's leave the base weights as they were."""

import copy
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_weights_are_the_same_bits_after_a_thousand_switches_over_64_adapters(dtype):
    base = load_base("tiny", dtype, torch.device("cpu")).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.view(-1)[::5] = -0.0  # what a subtraction would turn into 0
    model = adapt(base, "paca", 4)
    add_adapters(model, 64)
    assert len(model.peft_config) == 64
    before = copy.deepcopy(base)
    said = set()
    for number in range(1000):
        model.set_adapter(str(number * 7 % 64))
        said.add(tuple(logits(model)[0, -1].tolist()))
        if number % 100 == 0:
            assert pretrained(model, before)
    assert pretrained(model, before)
    assert len(said) == 64


@torch.no_grad()
def test_a_zero_that_has_lost_its_sign_is_a_changed_weight(base):
    model, before = adapt(base, "paca", 4), copy.deepcopy(base)
    assert pretrained(model, before)
    model.get_base_model().model.norm.weight[0] = 0.0
    before.model.norm.weight[0] = -0.0
    assert not pretrained(model, before)


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


@pytest.mark.parametrize(
    ("methods", "found"),
    [
        (["paca"], [PACA]),
        (["paca", "lora"], [PACA, LORA, MERGED]),
        (["paca-runs-16", "lora"], [RUNS, LORA, MERGED]),
        (["lora"], [LORA, MERGED]),
    ],
)
def test_methods_can_be_measured_apart_and_numbers_of_adapters_one_after_another(methods, found, tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = ["--config", "tiny", "--rounds", "1", "--new-tokens", "2", "--json", str(file), "--methods", *methods]
    assert main([*words, "--adapters", "2"]) == 0
    two = json.loads(file.read_text())["adapters"]["2"]
    assert main([*words, "--adapters", "3"]) == 0
    result = json.loads(file.read_text())
    assert result["adapters"]["2"] == two
    assert list(result["adapters"]["3"]) == [BASE, BASE_AGAIN, *found]
    assert ("× as fast" in capsys.readouterr().out) is (len(found) == 3)
    assert main([*words, "--adapters", "3", "--rank", "32"]) == 0
    assert list(json.loads(file.read_text())["adapters"]) == ["3"], "of another setting"
