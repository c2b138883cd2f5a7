"""Adapted `nn.MultiheadAttention`, whatever masks and options: what PyTorch's computes with the adapted weights."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.toys import assert_refused, assert_resident, layers, trained
from tests.tuner.layers.every import numbers, weights_of
from torch import nn
from torch.func import functional_call

from paca import PacaConfig, PacaError
from paca.tuner.layers import Attention

WIDTH, HEADS, ROWS, TARGETS, SOURCES = 8, 2, 3, 4, 5
HIDDEN = torch.zeros(ROWS, SOURCES, dtype=torch.bool).index_fill(1, torch.tensor([4]), True)
CAUSAL = torch.ones(TARGETS, TARGETS, dtype=torch.bool).triu(1)
OPTIONS = {
    "packed": {},
    "sequence first": {"batch_first": False},
    "no bias": {"bias": False},
    "bias of keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
}
CALLS = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "mask": {"attn_mask": numbers(TARGETS, SOURCES, seed=3)},
    "mask of each head": {"attn_mask": numbers(ROWS * HEADS, TARGETS, SOURCES, seed=3), "need_weights": False},
    "padding": {"key_padding_mask": HIDDEN},
    "padding and mask": {"key_padding_mask": HIDDEN, "attn_mask": numbers(TARGETS, SOURCES, seed=3) > 1},
}


class Net(nn.Module):
    """An attention module alone."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})
        nn.init.normal_(self.attention.in_proj_weight, std=0.5)
        if self.attention.in_proj_bias is not None:
            nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, query, key=None, value=None, **options):
        key = query if key is None else key
        return self.attention(query, key, key if value is None else value, **options)


def adapted(**options):
    plain = Net(**options).double()
    settings = {"r": 3, "paca_alpha": 5, "target_modules": ["attention"], "random_seed": 0, "init_weights": False}
    return plain, get_peft_model(copy.deepcopy(plain), PacaConfig(**settings))


def reference(plain, model, *inputs, **options):
    weights = {}
    for name, layer in weights_of(model).items():
        update = layer.scaling["default"] * layer.paca_delta["default"]
        weights[name] = plain.get_parameter(name).detach().index_add(1, layer.paca_indices["default"], update)
    return functional_call(plain, weights, inputs, options)


def assert_same_as_reference(model, plain, *inputs, **options):
    """Outputs, weights of the heads, and all gradients."""
    wrt = [*{id(x): x.requires_grad_() for x in inputs}.values(), *trained(model)]
    (y, heads), (wanted, exact_heads) = model(*inputs, **options), reference(plain, model, *inputs, **options)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(heads, exact_heads, rtol=0, atol=1e-10)
    losses = [
        out.square().sum() + (0 if h is None else h.square().sum()) for out, h in ((y, heads), (wanted, exact_heads))
    ]
    grads, exact = (torch.autograd.grad(loss, wrt) for loss in losses)
    torch.testing.assert_close(grads, exact, rtol=0, atol=1e-10)
    return y


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("inputs", ["key is value", "all differ"])
def test_any_mask_and_option(options, call, inputs):
    plain, model = adapted(**options)
    query, key, value = numbers(ROWS, TARGETS, WIDTH), *(numbers(ROWS, SOURCES, WIDTH, seed=s) for s in (1, 2))
    tensors = (query, key) if inputs == "key is value" else (query, key, value)
    if not plain.attention.batch_first:
        tensors = tuple(x.transpose(0, 1).contiguous() for x in tensors)
    assert_same_as_reference(model, plain, *tensors, **call)
    assert_resident(model)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("hint", [True, False])
def test_self_attention_with_a_causal_mask(options, need_weights, hint):
    plain, model = adapted(**options)
    x = numbers(ROWS, TARGETS, WIDTH) if plain.attention.batch_first else numbers(TARGETS, ROWS, WIDTH)
    y = assert_same_as_reference(model, plain, x, attn_mask=CAUSAL, is_causal=hint, need_weights=need_weights)
    assert not torch.allclose(y, plain(x, attn_mask=CAUSAL)[0], atol=0.01), "the adapter is to change the output"


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch(batch_first):
    plain, model = adapted(batch_first=batch_first)
    query, key = numbers(TARGETS, WIDTH), numbers(SOURCES, WIDTH, seed=1)
    assert_same_as_reference(model, plain, query)
    assert_same_as_reference(model, plain, query, key, key_padding_mask=HIDDEN[0])
    assert_same_as_reference(
        model, plain, query, key, attn_mask=numbers(HEADS, TARGETS, SOURCES), average_attn_weights=False
    )


def test_dropout_is_that_of_the_module_and_only_in_training():
    plain, model = adapted(dropout=0.5)
    query = numbers(ROWS, TARGETS, WIDTH)
    outputs = []
    for need_weights in (True, False):
        torch.manual_seed(1)
        outputs.append(model(query, need_weights=need_weights)[0])
    assert not torch.allclose(outputs[0], reference(plain.eval(), model, query)[0], atol=0.01)
    assert_same_as_reference(model.eval(), plain.eval(), query)


def test_a_bias_is_trained_as_in_full_fine_tuning():
    plain, _ = adapted()
    settings = {"r": 3, "target_modules": ["attention"], "bias": "all"}
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(**settings))
    base = layers(model)["attention"].base_layer
    assert base.out_proj.bias.requires_grad
    base.in_proj_bias.requires_grad_(True)  # PEFT trains what is called `bias`
    for net in (plain, model):
        net(numbers(ROWS, TARGETS, WIDTH))[0].square().sum().backward()
    torch.testing.assert_close(base.in_proj_bias.grad, plain.attention.in_proj_bias.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(base.out_proj.bias.grad, plain.attention.out_proj.bias.grad, rtol=0, atol=1e-10)


def test_hooks_on_the_base_layer_fire_and_may_change_things():
    plain, model = adapted()
    for attention in (plain.attention, layers(model)["attention"].base_layer):
        attention.register_forward_hook(lambda _, args, result: (result[0] * 2, result[1]))
    assert_same_as_reference(model, plain, numbers(ROWS, TARGETS, WIDTH))


def encoder(depth=2, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True, dropout=0.0, **options)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=True).eval()


def test_the_fused_paths_of_pytorch_s_transformer_see_the_columns_of_now(monkeypatch):
    """Without gradients, PyTorch's encoder reads all weights itself and calls none of its layers."""
    plain = encoder()
    targets = ["self_attn", "linear1", "linear2"]
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=3, target_modules=targets, init_weights=False))
    bare = model.get_base_model()  # not by way of the model that writes all columns before its forward
    fused, original = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: fused.append(True) or original(*args))
    x = numbers(ROWS, SOURCES, WIDTH).float()
    optimizer = torch.optim.AdamW(trained(model), lr=0.1)
    for padding in (None, HIDDEN):
        bare.train()(x, src_key_padding_mask=padding).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights = {}
        for name, layer in weights_of(model).items():
            update = layer.paca_delta["default"].detach()
            weights[name] = plain.get_parameter(name).detach().index_add(1, layer.paca_indices["default"], update)
        with torch.no_grad():
            fused.clear()
            y = bare.eval()(x, src_key_padding_mask=padding)
            assert len(fused) == 2
            wanted = functional_call(plain, weights, (x,), {"src_key_padding_mask": padding})
            kept = torch.ones_like(y, dtype=torch.bool) if padding is None else ~padding[..., None].expand_as(y)
            torch.testing.assert_close(y[kept], wanted[kept], rtol=0, atol=1e-5)
            assert not torch.allclose(y[kept], plain(x, src_key_padding_mask=padding)[kept], atol=0.01)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(bare(x), plain(x))
    assert len(fused) > 2


def test_a_decoder_with_both_attentions_trains_saves_and_merges(tmp_path):
    torch.manual_seed(0)
    plain = nn.TransformerDecoderLayer(WIDTH, HEADS, 12, batch_first=True, dropout=0.0).double()
    targets = ["self_attn", "multihead_attn"]
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=3, target_modules=targets))
    batch = (numbers(ROWS, TARGETS, WIDTH), numbers(ROWS, SOURCES, WIDTH, seed=1))
    optimizer = torch.optim.AdamW(trained(model), lr=0.05)
    losses = []
    for _ in range(3):
        loss = model(*batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    wanted = model(*batch)
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(fresh(*batch), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(fresh.merge_and_unload()(*batch), wanted, rtol=0, atol=1e-12)


def test_the_output_projection_named_as_well_changes_nothing():
    plain = Net()
    settings = {"r": 3, "random_seed": 0, "init_weights": True}
    one, two = (
        get_peft_model(copy.deepcopy(plain), PacaConfig(target_modules=names, **settings))
        for names in (["attention"], ["attention", "out_proj"])
    )
    for name, layer in weights_of(one).items():
        assert torch.equal(layer.paca_indices["default"], weights_of(two)[name].paca_indices["default"])
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in two.named_parameters()]


def test_an_attention_that_two_parents_share():
    plain = nn.ModuleList([Net(), Net()]).double()
    plain[1].attention = plain[0].attention
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=3, target_modules=["attention"]))
    first, second = (net.attention for net in model.get_base_model())
    assert first is second
    assert isinstance(first, Attention)
    bare = model.unload()
    assert bare[0].attention is bare[1].attention
    assert type(bare[0].attention) is nn.MultiheadAttention


def test_all_linear_tells_of_attention_that_it_leaves_out():
    message = r"leaves out 2 layers \(layers\.0\.self_attn\.out_proj, .*MultiheadAttention reads itself.*all-weights"
    with pytest.warns(UserWarning, match=message):
        model = get_peft_model(encoder(), PacaConfig(r=3, target_modules="all-linear"))
    assert {name.rpartition(".")[2] for name in layers(model)} == {"linear1", "linear2"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(encoder(), PacaConfig(r=3, target_modules=["self_attn"]))


class Own(nn.MultiheadAttention):
    """One that does something else."""

    def forward(self, query, key, value, **options):
        return super().forward(query * 2, key, value, **options)


REFUSED = {
    "widths that differ": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6),
        r"its keys or values have other widths \(kdim=6, vdim=8\) than its queries \(8\)",
    ),
    "a forward of its own": (lambda: Own(8, 2), r"test_attention\.Own does more in its forward than attend"),
    "too few features": (lambda: nn.MultiheadAttention(2, 2), r"r=3 does not fit attention, which has 2 connections"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name(make, message):
    assert_refused("attention", make(), 3, message)


def test_what_an_adapted_module_cannot_do_is_said():
    _, model = adapted()
    model.eval()
    x = numbers(ROWS, TARGETS, WIDTH)
    with pytest.raises(PacaError, match=r"an adapter is on torch\.nn\.MultiheadAttention\. Run one batch per adapter"):
        model(x, adapter_names=["default"] * ROWS)
    layers(model)["attention"].base_layer.forward = lambda *args: None
    with pytest.raises(PacaError, match=r"forward of an adapted torch\.nn\.MultiheadAttention was replaced"):
        model(x)
