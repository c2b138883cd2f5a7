"""Whole architectures from tiny random configurations: train, save, load, merge; the same outputs each time."""

import copy

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import (
    assert_checkpointing_changes_no_gradient,
    assert_pretrained,
    assert_resident,
    layers,
    three_steps,
    trained,
)

from paca import PacaConfig

VOCABULARY = 64
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tokens(rows=2, length=9):
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(5))


def causal():
    return {"input_ids": tokens(), "labels": tokens()}


def pictures():
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))}


def of(model, config, **options):
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options))


ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = {"ffn_dim": 48, "max_position_embeddings": 32, "word_embed_proj_dim": 16, "vocab_size": VOCABULARY}
BERT = {"intermediate_size": 48, "max_position_embeddings": 32, "num_labels": 3, "vocab_size": VOCABULARY}
VIT = {"intermediate_size": 48, "image_size": 16, "patch_size": 8, "num_labels": 3}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
LABELS = torch.tensor([0, 2])

# A model, its batch, and how many layers are adapted.
ARCHITECTURES = {
    "Llama": (of("LlamaForCausalLM", "LlamaConfig", **DECODER), causal, 14),
    "Qwen3": (of("Qwen3ForCausalLM", "Qwen3Config", **DECODER), causal, 14),
    "Gemma": (of("GemmaForCausalLM", "GemmaConfig", **DECODER), causal, 14),
    "GPT-2": (of("GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, **GPT2), causal, 8),
    "OPT": (of("OPTForCausalLM", "OPTConfig", **ENCODER, **OPT), causal, 14),
    "BERT": (
        of("BertForSequenceClassification", "BertConfig", **ENCODER, **BERT),
        lambda: {"input_ids": tokens(), "labels": LABELS},
        14,
    ),
    "T5": (of("T5ForConditionalGeneration", "T5Config", vocab_size=VOCABULARY, **T5), causal, 32),
    "ViT": (
        of("ViTForImageClassification", "ViTConfig", **ENCODER, **VIT),
        lambda: {**pictures(), "labels": LABELS},
        13,
    ),
}


def output(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_train_save_load_merge(architecture, tmp_path):
    make, batch, count = ARCHITECTURES[architecture]
    batch = batch()
    torch.manual_seed(0)
    plain = make().eval()
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=4, paca_alpha=8, target_modules="all-linear"))
    assert len(layers(model)) == count  # every linear layer but a language model's head
    torch.testing.assert_close(output(model, batch), output(plain, batch))

    optimizer = torch.optim.AdamW(trained(model), lr=2e-2, fused=True)
    losses = three_steps(model, lambda: model.train()(**batch).loss, optimizer)
    assert losses[-1] < losses[0]
    wanted = output(model, batch)
    assert (wanted - output(plain, batch)).abs().max() > 1e-2

    state = model.get_base_model().state_dict()
    for name, value in plain.state_dict().items():
        inside = name.rsplit(".", 1)
        adapted = f"{inside[0]}.base_layer.{inside[1]}"
        assert torch.equal(state[adapted if adapted in state else name], value), name
    with model.disable_adapter():
        assert_pretrained(plain, model)
        torch.testing.assert_close(output(model, batch), output(plain, batch))

    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(output(fresh, batch), wanted, rtol=1e-4, atol=1e-5)
    merged = fresh.merge_and_unload(safe_merge=True)
    assert type(merged) is type(plain)
    torch.testing.assert_close(output(merged, batch), wanted, rtol=1e-4, atol=1e-5)
    again = make()
    again.load_state_dict(merged.state_dict())
    torch.testing.assert_close(output(again, batch), wanted, rtol=1e-4, atol=1e-5)


def test_generation_with_and_without_the_adapter():
    torch.manual_seed(0)
    plain = ARCHITECTURES["Llama"][0]().eval()
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(target_modules="all-linear", init_weights=False)).eval()
    options = {"input_ids": tokens(2, 4), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    adapted = model.generate(**options)
    assert_resident(model)
    with model.disable_adapter():
        assert torch.equal(model.generate(**options), plain.generate(**options))
    assert not torch.equal(adapted, plain.generate(**options))
    mixed = model.generate(**options, adapter_names=["default", "__base__"])
    assert torch.equal(mixed[0], adapted[0])
    assert torch.equal(mixed[1], plain.generate(**options)[1])


def test_the_usual_layers_of_a_known_architecture():
    model = get_peft_model(ARCHITECTURES["Llama"][0](), PacaConfig())
    assert {name.rsplit(".", 1)[1] for name in layers(model)} == {"q_proj", "v_proj"}


def test_gradient_checkpointing_of_transformers():
    def make():
        torch.manual_seed(0)
        config = PacaConfig(target_modules="all-linear", init_weights=False, random_seed=1)
        return get_peft_model(ARCHITECTURES["Llama"][0]().double(), config)

    assert_checkpointing_changes_no_gradient(make, causal())
