"""PaCA on linear layers, plain and quantized: what they compute and keep, and that no pretrained byte is touched."""

import copy
import io
import logging

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from peft import PeftModel, get_peft_model
from tests.toys import layers, trained
from tests.tuner.layers.kinds import (
    FORMATS,
    IN,
    LAYER_KINDS,
    OUT,
    TORCHAO,
    Toy,
    adapted,
    config,
    dequantized,
    inputs,
    packed_bytes,
    reference,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import paca
from paca.tuner.layers import QuantizedLinear, layer_kind
from paca.workbench.training.report import count_parameters

ROUNDING = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}
SHAPES = {"2-D": (6, IN), "3-D": (2, 3, IN), "4-D": (2, 1, 3, IN), "empty": (0, IN)}

kinds = pytest.mark.parametrize("form", LAYER_KINDS)
forms = pytest.mark.parametrize("form", FORMATS)


def assert_close(a, b, dtype=torch.float32):
    torch.testing.assert_close(a, b, **ROUNDING[dtype])


def gradients(model, y, x):
    return torch.autograd.grad(y.float().square().sum(), [x, *trained(model)])


@kinds
@pytest.mark.parametrize("compute", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_dequantized_layer(form, compute, shape, bias):
    plain, model = adapted(form, compute, bias, paca_alpha=7)
    x = inputs(compute, shape).requires_grad_()
    y, wanted = model(x), reference(plain, model, x)
    assert_close(y, wanted, compute)
    for got, grad in zip(gradients(model, y, x), gradients(model, wanted, x), strict=True):
        assert_close(got, grad, compute)
    if shape[0]:
        assert not torch.allclose(y, plain(x), **ROUNDING[compute])  # the control: the adapter changes something
    assert packed_bytes(model) == packed_bytes(plain)


@pytest.mark.parametrize("form", [form for form in LAYER_KINDS if form != "HQQ"])
def test_a_bias_is_trained_as_in_full_fine_tuning(form):
    plain, _ = adapted(form)
    model = get_peft_model(copy.deepcopy(plain), config(bias="paca_only"))
    layer = layers(model)["two"]
    y = layer(inputs(shape=(6, 128)))
    upstream = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    (grad,) = torch.autograd.grad(y, layer.base_layer.bias, upstream)
    assert_close(grad, upstream.sum(0))


def test_a_bias_that_is_no_parameter_is_not_trained():
    with pytest.raises(paca.PacaError, match="bias='all' cannot train the bias of one, which HQQLinear keeps as a pl"):
        get_peft_model(Toy("HQQ"), config(bias="all"))


@pytest.mark.parametrize("form", ["NF4", "FP4"])
def test_the_base_layer_s_compute_dtype_counts_and_the_input_s_comes_back(form):
    _, model = adapted(form, torch.bfloat16)
    seen = []
    layer = layers(model)["one"]
    x = inputs(torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.dtype) or t, lambda t: t):
        y = layer(x)
    assert y.dtype == torch.float32
    assert layer.base_layer(x).dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


def test_bitsandbytes_settles_an_open_compute_dtype_as_in_its_own_forward():
    layer = bnb.nn.Linear4bit(IN, 32, quant_type="nf4").to("cpu")
    model = get_peft_model(nn.Sequential(layer), config(target_modules=["0"]))
    assert model(inputs(torch.bfloat16)).dtype == torch.bfloat16
    assert layer.compute_dtype == torch.bfloat16


@kinds
def test_autocast(form):
    plain, model = adapted(form)
    x = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = model(x), reference(plain, model, x)
    assert_close(y.float(), wanted.float(), torch.bfloat16)
    y.float().sum().backward()
    assert all(parameter.grad is not None for parameter in trained(model))


@forms
def test_only_the_slices_are_kept_for_backward(form):
    _, model = adapted(form)
    layer, x = layers(model)["one"], inputs().requires_grad_()
    packed = {t.untyped_storage().data_ptr() for t in layer.base_layer.parameters()} if form not in TORCHAO else set()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    kept = [t for t in kept if t.untyped_storage().data_ptr() not in packed]
    assert [tuple(t.shape) for t in kept] == [(6, 5)]


@kinds
def test_training_moves_the_output_and_no_pretrained_byte(form):
    plain, model = adapted(form)
    before, start = packed_bytes(model), model(inputs()).detach()
    optimizer = torch.optim.AdamW(trained(model), lr=0.01, fused=True)
    losses = []
    for _ in range(5):
        loss = model(inputs()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert_close(model(inputs()), reference(plain, model, inputs()))
    assert losses == sorted(losses, reverse=True)
    assert not torch.allclose(model(inputs()), start)
    with model.disable_adapter():
        assert torch.equal(model(inputs()), plain(inputs()))
    assert torch.equal(model.unload()(inputs()), plain(inputs()))
    assert packed_bytes(model) == before == packed_bytes(plain)


@kinds
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(form, reentrant):
    _, model = adapted(form)
    x = inputs().requires_grad_()
    wanted = gradients(model, model(x), x)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert_close([x.grad, *(parameter.grad for parameter in trained(model))], list(wanted))


def test_backward_after_an_optimizer_step_is_refused():
    _, model = adapted("NF4")
    loss = model(inputs()).square().sum()
    loss.backward(retain_graph=True)
    torch.optim.AdamW(trained(model), lr=0.1, fused=True).step()
    with pytest.raises(RuntimeError, match=r"were changed before its backward pass .*Call backward\(\) first"):
        loss.backward()


@kinds
def test_several_adapters_and_mixed_batches(form):
    plain, model = adapted(form)
    model.add_adapter("other", config(random_seed=1, r=7))
    x = inputs()
    assert_close(model(x), reference(plain, model, x))
    model.set_adapter("other")
    assert_close(model(x), reference(plain, model, x, ["other"]))
    model.base_model.set_adapter(["default", "other"])
    assert_close(model(x), reference(plain, model, x, ["default", "other"]))
    model.eval()
    names = ["default", "other", "__base__"] * 2
    mixed = model(x, adapter_names=names)
    base = {"rtol": 0.05, "atol": 0.05} if form == "int8" else {"rtol": 1e-4, "atol": 1e-5}  # int8 rounds inputs too
    for row, name in enumerate(names):
        wanted = plain(x[row : row + 1]) if name == "__base__" else reference(plain, model, x[row : row + 1], [name])
        torch.testing.assert_close(mixed[row : row + 1], wanted, **base)
    model.base_model.set_adapter("default")
    model.delete_adapter("other")
    assert_close(model(x), reference(plain, model, x))
    assert packed_bytes(model) == packed_bytes(plain)


@kinds
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_save_and_load(form, low_cpu_mem_usage, tmp_path):
    plain, model = adapted(form)
    wanted = model(inputs())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(inputs()), wanted)
    assert not torch.allclose(plain(inputs()), wanted)


@kinds
def test_copies_compute_the_same(form):
    plain, model = adapted(form)
    wanted = model(inputs())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(inputs()), wanted)
    with torch.no_grad():
        for parameter in trained(twin):
            parameter.zero_()
    assert torch.equal(model(inputs()), wanted)
    twin.merge_adapter()
    again = copy.deepcopy(twin)
    again.unmerge_adapter()
    assert packed_bytes(again) == packed_bytes(plain)


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in TORCHAO])  # torchao's cannot be pickled
@pytest.mark.parametrize("merged", [False, True])
def test_a_pickled_model_computes_the_same(form, merged):
    plain, model = adapted(form)
    if merged:
        model.merge_adapter()
    wanted = model(inputs())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(inputs()), wanted)
    if not merged:
        twin.merge_adapter()
    assert packed_bytes(twin) != packed_bytes(plain)
    twin.unmerge_adapter()
    assert packed_bytes(twin) == packed_bytes(plain)


@pytest.mark.parametrize("form", ["NF4", "int8", "torchao int8"])
def test_a_compiled_model_trains_as_an_uncompiled_one(form):
    """The quantized layers run uncompiled, what is around them is compiled."""
    losses = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
        plain, model = adapted(form)
        step, optimizer = wrap(model), torch.optim.AdamW(trained(model), lr=0.01)
        losses.append([])
        for _ in range(3):
            loss = step(inputs()).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss)
        assert_close(step(inputs()), reference(plain, model, inputs()))
        assert packed_bytes(model) == packed_bytes(plain)
    assert_close(*losses)
    assert losses[0][2] < losses[0][0]


@forms
def test_the_trained_share_counts_packed_weights_as_what_they_stand_for(form, caplog):
    with caplog.at_level(logging.INFO, logger="paca"):
        _, model = adapted(form)
    with_adapter, trains = count_parameters(model), 5 * (128 + OUT)
    biases = 0 if form == "HQQ" else 128 + OUT  # HQQ's are no parameters
    base = 64 * 128 + 128 * OUT + biases + OUT * 4 + 4
    assert (with_adapter.trained, with_adapter.total) == (trains, base + trains)
    assert f"{trains:,} of {base:,} weights" in caplog.text


@forms
def test_merging_packs_the_adapted_weight_and_logs_the_error(form, caplog):
    plain, model = adapted(form)
    wanted = reference(plain, model, inputs())
    with caplog.at_level(logging.INFO, logger="paca"):
        model.merge_adapter()
    lines = [record.getMessage() for record in caplog.records if "merged into" in record.getMessage()]
    assert len(lines) == 2
    for name, layer in layers(model).items():
        exact = dequantized(plain.get_submodule(name)).float()
        update = layer.scaling["default"] * layer.paca_delta["default"].detach()
        exact = exact.index_add(1, layer.paca_indices["default"], update)
        error = float((dequantized(layer.base_layer) - exact).norm() / exact.norm())
        assert layer.merge_error == pytest.approx(error, rel=1e-3)
        assert any(name in line and f"{layer.merge_error:.2e}" in line for line in lines)
        assert 0 < error < 0.15
    merged = model(inputs())
    assert (merged - wanted).norm() < (plain(inputs()) - wanted).norm()
    assert packed_bytes(model) != packed_bytes(plain)
    with model.disable_adapter():
        assert packed_bytes(model) == packed_bytes(plain)
        assert torch.equal(model(inputs()), plain(inputs()))
    assert torch.equal(model(inputs()), merged)
    model.unmerge_adapter()
    assert packed_bytes(model) == packed_bytes(plain)
    assert_close(model(inputs()), wanted)
    model.merge_adapter()
    assert torch.equal(model.merge_and_unload()(inputs()), merged)


@kinds
def test_merging_in_sequence_equals_merging_at_once(form):
    plain, model = adapted(form)
    model.add_adapter("other", config(random_seed=1, r=7))
    model.merge_adapter(["default"])
    model.merge_adapter(["other"])
    one_by_one = packed_bytes(model)
    model.unmerge_adapter()
    assert packed_bytes(model) == packed_bytes(plain)
    model.merge_adapter(["default", "other"])
    assert packed_bytes(model) == one_by_one


@forms
@pytest.mark.parametrize("safe_merge", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_merged(form, safe_merge, bad):
    plain, model = adapted(form)
    with torch.no_grad():
        layers(model)["two"].paca_delta["default"][3, 1] = bad
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(paca.PacaError, match=r"NaNs detected .*Nothing was merged"):
            merge(safe_merge=safe_merge)
    with pytest.raises(paca.PacaError, match="NaNs detected"):
        model.merge_and_dequantize()
    assert packed_bytes(model) == packed_bytes(plain)
    assert isinstance(layers(model)["one"].base_layer, type(plain.one))
    assert not layers(model)["one"].merged_adapters


@forms
@pytest.mark.parametrize("dtype", ROUNDING)
def test_an_exact_merge_into_an_ordinary_model(form, dtype):
    plain, model = adapted(form)
    wanted = {name: layer.adapted_matrix(dtype) for name, layer in layers(model).items()}
    y = reference(plain, model, inputs())
    merged = model.merge_and_dequantize(dtype)
    for name, matrix in wanted.items():
        assert type(merged.get_submodule(name)) is nn.Linear
        assert torch.equal(merged.get_submodule(name).weight, matrix)
    assert_close(merged(inputs(dtype)).float(), y, dtype)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}


def test_a_layer_that_was_not_adapted_is_dequantized_too():
    plain, model = adapted("NF4", target_modules=["one"])
    merged = model.merge_and_dequantize(torch.float32)
    assert torch.equal(merged.two.weight, dequantized(plain.two))


@forms
def test_adapters_move_between_the_quantized_and_the_plain_model(form, tmp_path, recwarn):
    """In both directions, without the warning that other weights get."""
    plain, model = adapted(form)
    ordinary = ordinary_model(form)
    model.save_pretrained(tmp_path / "quantized")
    on_plain = PeftModel.from_pretrained(copy.deepcopy(ordinary), tmp_path / "quantized")
    assert type(layers(on_plain)["one"]).__name__ == "Linear"
    for name, layer in layers(on_plain).items():
        assert torch.equal(layer.paca_delta["default"], layers(model)[name].paca_delta["default"])
    on_plain.save_pretrained(tmp_path / "plain")
    back = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "plain")
    assert torch.equal(back(inputs()), model(inputs()))
    assert not [w for w in recwarn if "other pretrained weights" in str(w.message)]


def ordinary_model(form):
    """The unquantized weights of the toy."""
    from tests.tuner.layers.kinds import Toy

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYER_KINDS, form, lambda layer, compute: layer)
        return Toy(form)


def test_an_adapter_of_another_model_is_reported(tmp_path):
    _, model = adapted("NF4")
    model.save_pretrained(tmp_path)
    other = ordinary_model("NF4")
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    with pytest.warns(UserWarning, match="trained on other pretrained weights"):
        PeftModel.from_pretrained(other, tmp_path)


def test_torchao_weights_go_to_the_quantized_kind():
    """Such a layer is an nn.Linear, and its weight calls itself floating point: it was taken for a plain one."""
    for form in FORMATS:
        plain, _ = adapted(form)
        assert layer_kind(plain.one).layer_class is QuantizedLinear
        assert layer_kind(plain.head).layer_class is not QuantizedLinear


def test_torchao_without_its_configuration_merges_into_an_ordinary_model_only():
    plain, _ = adapted("torchao int8")
    del plain.hf_quantizer
    model = get_peft_model(plain, config())
    with pytest.raises(
        paca.PacaError, match=r"Cannot merge into a torchao layer: .*TorchAoConfig.*merge_and_dequantize"
    ):
        model.merge_adapter()
    assert type(model.merge_and_dequantize().one) is nn.Linear


@pytest.mark.parametrize("form", ["NF4", "NF4 double"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_that_bitsandbytes_has_repacked_for_a_cpu(form, when):
    """Its forward without gradients repacks the weight in place, where the processor has bfloat16 instructions."""
    plain, model = adapted(form)
    wanted, one = model(inputs()), plain.one if when == "before" else layers(model)["one"].base_layer
    one.weight.data, one.weight.quant_state = _convert_weight_packed_for_cpu(one.weight.data, one.weight.quant_state)
    assert one.weight.quant_state.packing_format_for_cpu
    one.support_avx512bf16_for_cpu = True
    if when == "before":
        again = get_peft_model(plain, config())
        with torch.no_grad():
            for parameter, other in zip(trained(again), trained(model), strict=True):
                parameter.copy_(other)
        model = again
        assert not layers(model)["one"].base_layer.weight.quant_state.packing_format_for_cpu
    assert_close(model(inputs()), wanted, torch.bfloat16)


@pytest.mark.parametrize("form", ["NF4", "NF4 double"])
def test_bitsandbytes_repacks_no_adapted_weight(form):
    _, model = adapted(form)
    before = packed_bytes(model)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        model(inputs())
    assert packed_bytes(model) == before
    state = layers(model)["one"].base_layer.weight.quant_state
    assert not getattr(state, "packing_format_for_cpu", False)


def test_hooks_on_the_base_layer_fire_also_while_merged():
    _, model = adapted("NF4")
    seen = []
    handle = layers(model)["one"].base_layer.register_forward_hook(lambda *_: seen.append(1))
    model(inputs())
    model.merge_adapter()
    model(inputs())
    handle.remove()
    model(inputs())
    assert len(seen) == 2


def test_rank_beyond_the_layer_names_its_size():
    plain, _ = adapted("NF4")
    with pytest.raises(
        paca.PacaError, match=r"r=65 does not fit one, which has 64 connections \(weight \(128, 64\)\)"
    ):
        get_peft_model(plain, config(r=65))
    assert type(plain.one) is bnb.nn.Linear4bit


def test_a_weight_that_is_not_quantized_yet_is_refused():
    layer = bnb.nn.Linear4bit(IN, 32, quant_type="nf4")
    with pytest.raises(paca.PacaError, match=r"0 \(Linear4bit\) cannot be adapted: its weight is not quantized yet"):
        get_peft_model(nn.Sequential(layer), config(target_modules=["0"]))
    layer = bnb.nn.Linear8bitLt(IN, 32, has_fp16_weights=True).to("cpu")
    with pytest.raises(paca.PacaError, match=r"has_fp16_weights=False"):
        get_peft_model(nn.Sequential(layer), config(target_modules=["0"]))


class Foreign(nn.Module):
    """A layer of a package that is not there."""

    __module__ = "gptqmodel.nn_modules"

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = IN, 32
        self.qweight = nn.Parameter(torch.zeros(4, dtype=torch.int32), requires_grad=False)


def test_a_format_whose_package_is_missing_names_it():
    with pytest.raises(paca.PacaError, match=r"package 'gptqmodel', which is not installed"):
        get_peft_model(nn.Sequential(Foreign()), config(target_modules=["0"]))
