"""`target_modules="mlp"` and `"mlp-out"`: which layers they find, by their shapes, in whatever architecture."""

import re

import pytest
import timm
import torch
import torchvision
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import layers, three_steps, trained
from tests.tuner.layers.test_experts import DECODER, plain_model
from torch import nn

from paca import PacaConfig, PacaError
from paca.tuner.targets.keywords import expand_targets
from paca.tuner.targets.mlp import mlp_layers, mlp_outputs


def of(kind, **options):
    """A model of transformers in its usual widths, with two layers, without memory."""
    config = getattr(transformers, f"{kind}Config")(**options)
    return transformers.AutoModel.from_config(config)


TWO = {"num_hidden_layers": 2}
T5 = {"num_layers": 2, "num_decoder_layers": 2}
BART = {"encoder_layers": 2, "decoder_layers": 2}
VIT = {"image_size": 32, "patch_size": 16}

# A model, the last names of the output projections, how many these are, and the last names of what widens to them.
MODELS = {
    "Llama": (lambda: of("Llama", **TWO), "mlp.down_proj", 2, "gate_proj up_proj"),
    "Phi-3, whose gate and up are one layer": (lambda: of("Phi3", **TWO), "mlp.down_proj", 2, "gate_up_proj"),
    "Gemma, whose heads are wider than it": (lambda: of("Gemma2", **TWO), "mlp.down_proj", 2, "gate_proj up_proj"),
    "GPT-2": (lambda: of("GPT2", n_layer=2), "mlp.c_proj", 2, "c_fc"),
    "GPT-J": (lambda: of("GPTJ", n_layer=2), "mlp.fc_out", 2, "fc_in"),
    "GPT-NeoX": (lambda: of("GPTNeoX", **TWO), "mlp.dense_4h_to_h", 2, "dense_h_to_4h"),
    "BLOOM": (lambda: of("Bloom", n_layer=2), "mlp.dense_4h_to_h", 2, "dense_h_to_4h"),
    "MPT": (lambda: of("Mpt", n_layers=2), "ffn.down_proj", 2, "up_proj"),
    "OPT": (lambda: of("OPT", **TWO), "fc2", 2, "fc1"),
    "BERT": (lambda: of("Bert", **TWO), "output.dense", 2, "intermediate.dense"),
    "DeBERTa": (lambda: of("DebertaV2", **TWO), "output.dense", 2, "intermediate.dense"),
    "DistilBERT": (lambda: of("DistilBert", n_layers=2), "ffn.lin2", 2, "lin1"),
    "T5, whose attention narrows too": (lambda: of("T5", d_kv=256, **T5), "DenseReluDense.wo", 4, "wi"),
    "gated T5": (lambda: of("T5", feed_forward_proj="gated-gelu", **T5), "DenseReluDense.wo", 4, "wi_0 wi_1"),
    "BART": (lambda: of("Bart", **BART), "fc2", 4, "fc1"),
    "Whisper": (lambda: of("Whisper", **BART), "fc2", 4, "fc1"),
    "wav2vec 2.0": (lambda: of("Wav2Vec2", **TWO), "feed_forward.output_dense", 2, "intermediate_dense"),
    "ViT": (lambda: of("ViT", **TWO, **VIT), "mlp.fc2", 2, "fc1"),
    "a ViT of timm": (lambda: timm.create_model("test_vit"), "mlp.fc2", 6, "fc1"),
    "a SwiGLU of timm": (lambda: timm.create_model("eva02_base_patch14_224"), "mlp.fc2", 12, "fc1_g fc1_x"),
    "a ConvNeXt of timm": (lambda: timm.create_model("test_convnext"), "mlp.fc2", 9, "fc1"),
    "an EfficientNet of timm": (lambda: timm.create_model("efficientnet_lite0"), "conv_pwl", 15, "conv_pw"),
    "a ViT of torchvision": (torchvision.models.vit_b_32, "mlp.3", 12, "mlp.0"),
    "a Swin of torchvision": (torchvision.models.swin_t, "mlp.3", 12, "mlp.0"),
    "torch's own transformer": (lambda: nn.Transformer(16, 2, 1, 1, 32), "linear2", 2, "linear1"),
    "a ResNet, which narrows first": (torchvision.models.resnet50, "", 0, ""),
    "a state space model": (lambda: of("Mamba", **TWO), "", 0, ""),
}


@pytest.mark.parametrize(("make", "end", "count", "wide"), MODELS.values(), ids=MODELS)
def test_layers_are_told_by_their_shapes(make, end, count, wide):
    with torch.device("meta"):
        model = make()
    named = [name for name, _ in model.named_modules() if end and name.endswith(end)]
    found = mlp_outputs(model)
    assert found == [name for name in named if "attention.output" not in name]
    assert len(found) == count
    both = mlp_layers(model)
    assert [name for name in both if name in found] == found
    widening = [name for name in both if name not in found]
    assert all(name.endswith(tuple(f".{last}" for last in wide.split())) for name in widening)
    assert len(widening) == count * len(wide.split())


def llama():
    shape = {key: value for key, value in DECODER.items() if "expert" not in key and "moe" not in key}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))


def test_it_is_trained_saved_and_loaded_by_names(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(llama(), PacaConfig(r=4, target_modules="mlp-out", random_seed=0))
    assert [re.sub(r"\d", "#", name) for name in layers(model)] == ["model.layers.#.mlp.down_proj"] * 2
    tokens = torch.randint(3, 32, (2, 5), generator=torch.Generator().manual_seed(0))
    three_steps(model, lambda: model(input_ids=tokens, labels=tokens).loss, torch.optim.AdamW(trained(model)))
    model.add_adapter("other", PacaConfig(r=2, target_modules="MLP-out"))
    assert {len(layer.paca_delta) for layer in layers(model).values()} == {2}
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    torch.manual_seed(0)
    fresh = PeftModel.from_pretrained(llama(), tmp_path)
    torch.testing.assert_close(fresh(tokens).logits, model.eval()(tokens).logits)


def test_fused_experts_are_adapted_as_well():
    model = get_peft_model(plain_model(), PacaConfig(r=2, target_modules="mlp-out"))
    assert model.peft_config["default"].target_parameters == ["mlp.experts.down_proj"]
    assert [name.rpartition(".")[2] for name in layers(model)] == ["experts"] * 2


def test_all_layers_of_mlps_are_adapted_experts_among_them():
    model = get_peft_model(llama(), PacaConfig(r=2, target_modules="mlp"))
    assert {name.rpartition(".")[2] for name in layers(model)} == {"gate_proj", "up_proj", "down_proj"}
    model = get_peft_model(plain_model(), PacaConfig(r=2, target_modules="MLP"))
    assert set(model.peft_config["default"].target_parameters) == {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}
    bare = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    assert mlp_layers(bare) == ["0", "2"]


def test_what_else_is_excluded_or_named_still_counts():
    model = get_peft_model(
        llama(), PacaConfig(r=2, target_modules="mlp-out", exclude_modules=[r"layers.0.mlp.down_proj"])
    )
    assert len(layers(model)) == 1


@pytest.mark.parametrize("word", ["mlp", "mlp-out"])
@pytest.mark.parametrize("make", [torchvision.models.resnet18, lambda: of("Mamba", **TWO)], ids=["ResNet", "Mamba"])
def test_a_model_without_one_is_refused_with_its_layers(make, word):
    with torch.device("meta"):
        model = make()
    with pytest.raises(
        PacaError, match=rf"'{word}': no layer of .* projects out of an MLP.* \(\d+ to \d+\).*name those"
    ):
        expand_targets(model, PacaConfig(r=2, target_modules=word))


def test_a_head_is_no_output_projection():
    model = nn.Sequential()
    model.add_module("features", nn.Linear(4, 16))
    model.add_module("classifier", nn.Linear(16, 4))
    with pytest.raises(PacaError, match=r"features \(4 to 16\), classifier \(16 to 4\)"):
        expand_targets(model, PacaConfig(r=2, target_modules="mlp-out"))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("mlp_out", "did you mean 'mlp-out'?"),
        ("all_linear", "did you mean 'all-linear'?"),
        ("qproj", "did you mean 'q_proj'?"),
        (".*nothing", "it matches no layer's whole name. Layers of this model that can be adapted: "),
    ],
)
def test_a_word_that_matches_nothing_gets_the_near_one(word, hint):
    model = llama()
    with pytest.raises(PacaError, match=re.escape(hint)) as caught:
        get_peft_model(model, PacaConfig(target_modules=word))
    assert "one of 'all-linear', 'all-weights', 'mlp', 'mlp-out'" in str(caught.value)
    assert not layers(model)
