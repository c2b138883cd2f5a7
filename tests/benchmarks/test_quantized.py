"""The benchmarks of quantized training measure what they say."""

import json

import pytest
import torch

import quantized
import quantized_quality
from methods import FLOOR, FLOOR_AGAIN
from paca.tuner.layers import QuantizedLinear
from quantized import load_quantized, main, measure
from step import prepare


@pytest.fixture(scope="module")
def base():
    return load_quantized("tiny", "float32", "nf4")


def test_all_methods_stand_on_the_same_packed_weights(base):
    steps = prepare(base, [quantized.METHODS[name] for name in quantized._METHODS], 8, 4)
    assert [type(m) for m in steps["paca"].model.modules()].count(QuantizedLinear) == 14
    packed = {name: [p for p in step.model.parameters() if p.dtype == torch.uint8] for name, step in steps.items()}
    for weights in packed.values():
        assert len(weights) == 14
        assert all(torch.equal(a, b) for a, b in zip(weights, packed[FLOOR], strict=True))
    losses = torch.stack([step.loss().detach() for step in steps.values()])
    torch.testing.assert_close(losses, losses[:1].expand_as(losses))


def test_what_is_measured_and_in_what_order_it_lies(base):
    found = measure(base, tokens=32, rank=4, rounds=1)
    assert list(found) == [FLOOR, FLOOR_AGAIN, "QPaCA", "QLoRA"]
    assert found[FLOOR].kept_bytes == found[FLOOR_AGAIN].kept_bytes < found["QPaCA"].kept_bytes
    assert found["QPaCA"].kept_bytes < found["QLoRA"].kept_bytes
    assert found[FLOOR].peak_bytes < found["QPaCA"].peak_bytes < found["QLoRA"].peak_bytes
    # Only what 4 columns of each input take is kept beside the floor's: float32, 14 layers.
    assert found["QPaCA"].kept_bytes - found[FLOOR].kept_bytes == 14 * 32 * 4 * 4


def test_the_command_prints_the_table_and_writes_the_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["--config", "tiny", "--tokens", "8", "--rank", "2", "--steps", "1", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert {row["trained_parameters"] > 0 for name, row in written["methods"].items() if "floor" in name} == {False}
    printed = capsys.readouterr().out
    assert "| QPaCA |" in printed
    assert "tiny, nf4, float32, 8 tokens, rank 2" in printed


def test_the_best_rate_of_each_method_counts(monkeypatch, capsys):
    losses = {"random": {6e-3: 2.4}, "weight_activation": {1e-3: 1.9, 2e-3: 1.8}, "lora": {1e-3: 2.5, 2e-3: 2.0}}

    def finetune(recipe):
        kind = "lora" if recipe.method.name == "lora" else recipe.method.config.get("selection", "random")
        loss = losses[kind][recipe.training["learning_rate"]]
        assert recipe.training["max_steps"] == 3
        return {"before": {"loss": 3.0}, "after": {"loss": loss}, "trained_parameters": 7}

    monkeypatch.setattr("paca.workbench.training.run.finetune", finetune)
    rates = ["--lora-rates", "1e-3", "2e-3", "--chosen-rates", "1e-3", "2e-3"]
    assert quantized_quality.main(["--steps", "3", *rates]) == 0
    assert "÷ QLoRA's: QPaCA 1.2000, QPaCA chosen 0.9000, QLoRA 1.0000" in capsys.readouterr().out
