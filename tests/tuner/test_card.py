"""The README.md beside an adapter: who gets it can load it, and knows what it is."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import trl
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from tests.toys import tiny_llama_config
from transformers import LlamaForCausalLM

from paca import PacaConfig
from paca.tuner.card import describe_adapter

IDS = torch.arange(6)[None]


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config(hidden_size=16, intermediate_size=24)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(base, **fields):
    options = {"r": 3, "target_modules": ["q_proj"], "init_weights": False, "task_type": "CAUSAL_LM", **fields}
    return get_peft_model(LlamaForCausalLM.from_pretrained(base), PacaConfig(**options)).eval()


def test_its_snippet_loads_the_adapter_in_a_process_that_knows_nothing(base, tmp_path):
    model = trained(base)
    model.save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "Model Card for Model ID" not in text
    assert "KeyError: 'PACA'" in text
    assert "@inproceedings{woo2025paca" in text
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1).replace("THIS-FOLDER", "adapter")
    code = f"{snippet}\nimport torch\ntorch.save(model(torch.arange(6)[None]).logits.detach(), 'logits.pt')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(IDS).logits)


@pytest.mark.parametrize(
    ("name", "sentence", "metadata"),
    [
        ("org/some-model", "belongs to the base model `org/some-model`", "org/some-model"),
        ("/data/mine", "lay in the folder `/data/mine` of the machine", None),
        (None, "without a name", None),
    ],
)
def test_the_base_model(base, tmp_path, name, sentence, metadata):
    model = trained(base)
    model.peft_config["default"].base_model_name_or_path = name
    model.base_model.model.name_or_path = ""
    model.base_model.model.config._name_or_path = name
    model.save_pretrained(tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert sentence in card.text
    assert card.data.base_model == metadata
    assert card.data.library_name == "peft"


def test_what_was_configured_and_with_which_versions(base, tmp_path):
    trained(base, paca_alpha=12, selection="weight").save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    for expected in ('"r": 3', '"paca_alpha": 12', '"selection": "weight"', '"q_proj"', f"- torch {version('torch')}"):
        assert expected in text
    assert "reselect_every" not in text  # as it is by default


def test_a_card_that_says_something_stays(base, tmp_path):
    model = trained(base)
    model.save_pretrained(tmp_path / "adapter")
    card = tmp_path / "adapter" / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    before = card.read_text()
    model.save_pretrained(tmp_path / "adapter")
    assert ModelCard.load(card).text.strip() == ModelCard(before).text.strip()
    describe_adapter(str(tmp_path / "adapter"), model.peft_config["default"], replace=True)
    assert "Mine." not in card.read_text()


def test_trl_s_card_is_replaced(base, tmp_path):
    """It shows how to load a whole model, and not an adapter."""
    template = Path(trl.__file__).parent / "templates" / "lm_model_card.md"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "README.md").write_text("---\nlicense: mit\n---\n" + template.read_text())
    trained(base).save_pretrained(tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert "import paca" in card.text
    assert "TRL" not in card.text
    assert card.data.license == "mit"


def test_another_method_needs_no_import(base, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    describe_adapter(str(tmp_path / "adapter"), model.peft_config["default"])
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "# LORA adapter" in text
    assert "import paca" not in text
    assert "PaCA" not in text


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_the_weights_is_the_umask_s_to_say(base, tmp_path, umask, mode):
    """safetensors lets nobody but the owner read what it writes."""
    model, before = trained(base), os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "adapter")
    finally:
        os.umask(before)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o777 == mode


def test_it_is_loaded_as_it_was(base, tmp_path):
    model = trained(base)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
