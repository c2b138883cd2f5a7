"""The benchmark of generation times adapters that answer, each differently, and all at the same length."""

import json

import pytest
import torch

from generate import BASE, BASE_AGAIN, answer, main, prepare
from models import load_base

PROMPT = torch.arange(8)[None]


@pytest.fixture(scope="module")
def models():
    return prepare(load_base("tiny", torch.float32, torch.device("cpu")), 16, 8)


def test_adapters_change_what_the_model_computes_on_all_seven_projections(models):
    assert list(models) == [BASE, BASE_AGAIN, "paca, rank 16", "lora, rank 8"]
    with torch.no_grad():
        logits = {name: model(PROMPT).logits for name, model in models.items()}
    assert torch.equal(logits[BASE], logits[BASE_AGAIN])
    for name in ("paca, rank 16", "lora, rank 8"):
        assert not torch.allclose(logits[name], logits[BASE], atol=1e-3)
        trained = [parameter for parameter in models[name].parameters() if parameter.requires_grad]
        assert all(parameter.any() for parameter in trained)
        assert len(trained) == 2 * 7 * (2 if "lora" in name else 1)
        assert not models[name].training


def test_an_answer_has_the_length_that_was_asked_for(models):
    for model in models.values():
        tokens = answer(model, PROMPT, 5)
        assert tokens.shape == (1, 13)
        assert torch.equal(tokens[:, :8], PROMPT)


def test_an_answer_that_ends_early_is_not_timed(models):
    model = models[BASE]
    model.generation_config.eos_token_id = int(answer(model, PROMPT, 1)[0, -1])
    try:
        with pytest.raises(RuntimeError, match="1 tokens were generated in place of 5"):
            answer(model, PROMPT, 5)
    finally:
        model.generation_config.eos_token_id = None


def test_a_run_prints_ratios_to_the_base_model_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["--config", "tiny", "--rounds", "2", "--new-tokens", "3", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    measured = result["methods"]
    assert list(measured) == [BASE, BASE_AGAIN, "paca, rank 16", "lora, rank 8"]
    assert measured[BASE]["to_base"] == 1
    assert result["noise"] == measured[BASE_AGAIN]["to_base"]
    printed = capsys.readouterr().out
    assert f"| lora, rank 8 | {measured['lora, rank 8']['seconds']:.3f} | " in printed
    assert f"32 tokens of prompt, 3 new ones; noise {result['noise']:.3f}" in printed
