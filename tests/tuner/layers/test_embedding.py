"""Adapted embeddings in language models: tokens that the user names, and tables that cannot be adapted."""

import copy

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import assert_checkpointing_changes_no_gradient, assert_refused, layers, trained
from torch import nn
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextScaledWordEmbedding

from paca import PacaConfig, PacaError
from paca.tuner.layers import Embedding

from ..test_architectures import DECODER, causal, output

NAMED = [3, 5, 11]


def llama(**options):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, **options)).eval()


def config(**options):
    settings = {"r": 3, "target_modules": ["embed_tokens"], "selection": "indices"}
    return PacaConfig(**{**settings, "selection_indices": {"embed_tokens": NAMED}, **options})


def steps(model, batch, count=3):
    optimizer = torch.optim.AdamW(trained(model), lr=0.05)
    for _ in range(count):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_tokens_that_the_user_names_are_trained_and_no_others(tmp_path):
    plain = llama()
    model = get_peft_model(copy.deepcopy(plain), config())
    (layer,) = layers(model).values()
    assert isinstance(layer, Embedding)
    assert layer.paca_indices["default"].tolist() == NAMED
    assert [tuple(parameter.shape) for parameter in trained(model)] == [(3, DECODER["hidden_size"])]
    ids = torch.tensor([[3, 7, 5, 11, 20, 3]])
    steps(model, {"input_ids": ids, "labels": ids})
    table, pretrained = layer.weight, plain.model.embed_tokens.weight
    moved = (table != pretrained).any(dim=1).nonzero().flatten().tolist()
    assert moved == NAMED
    wanted = output(model, {"input_ids": ids})
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 2000
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(output(fresh, {"input_ids": ids}), wanted, rtol=0, atol=1e-6)


def test_peft_saves_a_targeted_embedding_whole_and_the_pretrained_one(tmp_path):
    """PEFT's way, for tokens that were added to the base model: what is loaded again is the same."""
    plain = llama()
    model = get_peft_model(copy.deepcopy(plain), config())
    steps(model, causal())
    wanted = output(model, causal())
    with pytest.warns(UserWarning, match="embedding layers found in `target_modules`"):
        model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(output(fresh, causal()), wanted, rtol=0, atol=1e-6)
    assert torch.equal(fresh.unload().model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_checkpointing_of_transformers_beside_linear_layers():
    options = {"target_modules": ["embed_tokens", "q_proj"], "selection": "random", "selection_indices": None}
    settings = config(**options, random_seed=0, init_weights=False)
    assert_checkpointing_changes_no_gradient(lambda: get_peft_model(llama().double(), settings), causal())


def test_a_tied_embedding_is_refused_by_name():
    with pytest.raises(PacaError, match=r"embed_tokens\.weight is tied to lm_head\.weight.*tie_word_embeddings=False"):
        get_peft_model(llama(tie_word_embeddings=True), config())


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        ([1, 70], r"name 70, but the layer has the connections 0 to 63"),
        ([1, 2], r"has 2 connections, but r=3"),
    ],
)
def test_tokens_that_are_not_there_are_refused(selected, message):
    with pytest.raises(PacaError, match=message):
        get_peft_model(llama(), config(selection_indices={"embed_tokens": selected}))


REFUSED = {
    "max_norm": (lambda: nn.Embedding(10, 4, max_norm=1.0), r"max_norm=1\.0 has each forward shorten rows"),
    "a forward of its own": (
        lambda: T5Gemma2TextScaledWordEmbedding(10, 4, 0),
        r"T5Gemma2TextScaledWordEmbedding does more in its forward than look rows up",
    ),
    "too few tokens": (lambda: nn.Embedding(2, 4), r"r=3 does not fit table, which has 2 connections"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name(make, message):
    assert_refused("table", make(), 3, message)
