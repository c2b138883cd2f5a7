"""No way of changing an update leaves an old column in the weight: forward and backward use the current ones.

A stale column is the worst bug that resident columns can have, for training goes on, a little worse. Every test here
compares with plain autograd over `W₀ + s·Δ`, built anew from the pretrained weight each time.
"""

import itertools

import bitsandbytes
import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from tests.toys import (
    KINDS,
    adapted,
    adapted_weights,
    assert_pretrained,
    assert_resident,
    config,
    in_products_only,
    inputs,
    layers,
    reference,
    train,
    trained,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Adafactor

import paca
import paca.method.columns.resident

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=False),
    "AdamW foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "AdamW fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "SGD momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
    "SGD fused": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, fused=True),
    "Adafactor of torch": lambda parameters: torch.optim.Adafactor(parameters, lr=0.1),
    "Adafactor of transformers": lambda parameters: Adafactor(parameters, lr=0.1, relative_step=False),
}


@pytest.fixture(params=["connection-major", "row-major", "in products only"], autouse=True)
def way(request, monkeypatch):
    """The ways in which columns are lent: two memory layouts in training, and for the moment of a product.

    GPUs and bfloat16 always have the second layout. Changing the layout gives a weight new memory, which hid stale
    columns: a graph of before kept the old one.
    """
    if request.param == "in products only":
        in_products_only(monkeypatch)
    if request.param != "connection-major":
        monkeypatch.setattr(paca.method.columns.resident, "writes_faster_connection_major", lambda weight: False)


def watch(plain, model):
    """Compare the weight with `W₀ + s·Δ` at every GEMM of an adapted layer; returns the list of those seen."""
    seen = []

    def assert_adapted(name, layer):
        seen.append(name)
        wanted = adapted_weights(plain, model, layer.active_adapters)[f"{name}.weight"]
        torch.testing.assert_close(layer.base_layer.weight, wanted.detach(), rtol=0, atol=1e-12)

    for name, layer in layers(model).items():
        layer.base_layer.register_forward_pre_hook(lambda *_, name=name, layer=layer: assert_adapted(name, layer))
    return seen


def losses(model, optimizer, x, steps=4, plain=None):
    """The loss curve of the adapted model or, given the plain one, that of the reference."""
    curve = []
    for _ in range(steps):
        y = model(x) if plain is None else reference(plain, model, x)
        loss = y.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("way", ["connection-major", "row-major"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_gemm_sees_the_columns_of_now(optimizer, kind):
    plain, model = adapted(kind, paca_alpha=5)
    seen = watch(plain, model)
    curve = losses(model, optimizer(trained(model)), inputs())
    with model.disable_adapter():
        assert_pretrained(plain, model)
    assert len(seen) == 8
    assert len(set(curve)) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_loss_curve_is_that_of_plain_autograd(optimizer, kind):
    plain, model = adapted(kind, paca_alpha=5)
    _, other = adapted(kind, paca_alpha=5)
    curve = losses(model, optimizer(trained(model)), inputs())
    wanted = losses(other, optimizer(trained(other)), inputs(), plain=plain)
    torch.testing.assert_close(curve, wanted, rtol=0, atol=1e-9)
    model(inputs())
    assert_resident(model)


@pytest.mark.parametrize("kind", KINDS)
def test_bitsandbytes_writes_behind_the_version_counter(kind):
    plain, model = adapted(kind, torch.float32)
    optimizer = bitsandbytes.optim.AdamW8bit(trained(model), lr=0.05, min_8bit_size=8)
    for _ in range(3):
        model(inputs(torch.float32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        y = model(inputs(torch.float32))
        torch.testing.assert_close(y, reference(plain, model, inputs(torch.float32)), rtol=1e-5, atol=1e-5)
    assert_resident(model)


def test_a_write_through_data_is_seen():
    plain, model = adapted()
    before = model(inputs()).detach()
    for layer in layers(model).values():
        layer.paca_delta["default"].data.copy_(layer.paca_delta["default"].data * 3)
    torch.testing.assert_close(model(inputs()), reference(plain, model, inputs()), rtol=0, atol=1e-12)
    assert not torch.equal(model(inputs()), before)


def test_an_edit_in_place_is_seen():
    plain, model = adapted()
    model(inputs())
    with torch.no_grad():
        for parameter in trained(model):
            parameter.mul_(3)
    torch.testing.assert_close(model(inputs()), reference(plain, model, inputs()), rtol=0, atol=1e-12)


def test_lbfgs_evaluates_its_closure_over_current_columns():
    plain, model = adapted()
    optimizer = torch.optim.LBFGS(trained(model), lr=0.1, max_iter=4)

    def closure():
        optimizer.zero_grad()
        y = model(inputs())
        torch.testing.assert_close(y, reference(plain, model, inputs()), rtol=0, atol=1e-12)
        y.square().mean().backward()
        return y.square().mean()

    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_in_mid_training(assign):
    plain, model = adapted()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    before = model(inputs())
    train(model)
    assert not torch.allclose(model(inputs()), before)
    model.load_state_dict(start, assign=assign)
    del start  # its tensors lie over the memory of weights that were assigned
    torch.testing.assert_close(model(inputs()), before, rtol=0, atol=0 if assign else 1e-12)
    losses(model, torch.optim.AdamW(trained(model), lr=0.1), inputs())
    torch.testing.assert_close(model(inputs()), reference(plain, model, inputs()), rtol=0, atol=1e-12)
    assert_resident(model)


def test_an_optimizer_that_accelerate_wraps():
    plain, model = adapted()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained(model), lr=0.1, fused=True))
    for _ in range(3):
        accelerator.backward(prepared(inputs()).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(prepared(inputs()), reference(plain, model, inputs()), rtol=0, atol=1e-12)
    assert_resident(model)


def test_gradients_accumulate():
    plain, model = adapted()
    x = inputs()
    for part in x.split(2):
        model(part).square().sum().backward()
    got = [parameter.grad.clone() for parameter in trained(model)]
    wanted = torch.autograd.grad(reference(plain, model, x).square().sum(), trained(model))
    torch.testing.assert_close(got, list(wanted), rtol=0, atol=1e-12)


def test_an_optimizer_inside_backward():
    """One optimizer per parameter, stepped as soon as its gradient is there: columns change during backward."""
    plain, model = adapted()
    _, other = adapted()
    step_during_backward(model)
    optimizer = torch.optim.AdamW(trained(other), lr=0.1, fused=True)
    wanted = losses(other, optimizer, inputs(), plain=plain)
    curve = []
    for _ in range(4):
        loss = model(inputs()).square().mean()
        loss.backward()
        curve.append(loss.item())
    torch.testing.assert_close(curve, wanted, rtol=0, atol=1e-9)


def step_during_backward(model):
    optimizers = {parameter: torch.optim.AdamW([parameter], lr=0.1, fused=True) for parameter in trained(model)}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)


def test_autocast_in_bfloat16_sees_current_columns():
    plain, model = adapted(dtype=torch.float32)
    x = inputs(torch.float32)
    optimizer = torch.optim.AdamW(trained(model), lr=0.1, fused=True)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
            wanted = reference(plain, model, x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)
        grads = torch.autograd.grad(wanted.float().square().mean(), trained(model))
        y.float().square().mean().backward()
        for parameter, grad in zip(trained(model), grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=5e-2, atol=5e-3)
        optimizer.step()
        optimizer.zero_grad()
    with model.disable_adapter():
        assert_pretrained(plain, model)


def test_two_forwards_before_one_backward():
    plain, model = adapted()
    x = inputs()
    (model(x).square().sum() + model(2 * x).square().sum()).backward()
    loss = reference(plain, model, x).square().sum() + reference(plain, model, 2 * x).square().sum()
    wanted = torch.autograd.grad(loss, trained(model))
    torch.testing.assert_close([p.grad for p in trained(model)], list(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grad", [True, False])
def test_a_reference_forward_between_forward_and_backward(grad):
    """Preference training: the policy's backward comes after the pretrained model has run in the same weights."""
    plain, model = adapted()
    train(model)
    x = inputs()
    policy = model(x)
    with model.disable_adapter(), torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
        assert_pretrained(plain, model)
    policy.square().sum().backward()
    wanted = torch.autograd.grad(reference(plain, model, x).square().sum(), trained(model))
    torch.testing.assert_close([p.grad for p in trained(model)], list(wanted), rtol=0, atol=1e-12)


def input_gradient(forward, x):
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(forward(x).square().sum(), x)
    return grad


def test_a_pretrained_forward_keeps_its_input_gradient():
    """Its graph held the weight itself, which showed the adapter by the time of backward.

    It hid behind the memory layout for float32 on the CPU: going back and forth gave the weight new memory.
    """
    plain, model = adapted()
    train(model)
    x = inputs().requires_grad_()
    with model.disable_adapter():
        y = model(x)
    model(x)
    assert_resident(model)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, input_gradient(plain, x), rtol=0, atol=1e-12)


def test_a_layer_without_the_active_adapter_keeps_its_input_gradient():
    """The same for a layer that had no column to show in that forward."""
    plain, model = adapted()
    model.add_adapter("other", config(target_modules=["two"]))
    train(model)
    model.set_adapter("other")
    x = inputs().requires_grad_()
    y = model(x)
    wanted = input_gradient(lambda x: reference(plain, model, x, ["other"]), x)
    model.set_adapter("default")
    model(x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-12)


def test_a_merged_forward_keeps_its_input_gradient():
    plain, model = adapted()
    model.merge_adapter()
    x = inputs().requires_grad_()
    y = model(x)
    model.unmerge_adapter()
    y.square().sum().backward()
    wanted = input_gradient(lambda x: reference(plain, model, x), x)
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-12)
    model.base_model.disable_adapter_layers()
    assert_pretrained(plain, model)


def test_frozen_adapters_keep_their_input_gradient():
    plain, model = adapted()
    model.requires_grad_(False)
    x = inputs().requires_grad_()
    y = model(x)
    with model.disable_adapter():
        model(x)
        assert_pretrained(plain, model)
    y.square().sum().backward()
    wanted = input_gradient(lambda x: reference(plain, model, x), x)
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_switching_adapters_between_forward_and_backward(kind):
    plain, model = adapted(kind)
    model.add_adapter("other", config(random_seed=1, r=5))
    x = inputs().requires_grad_()
    first = model(x)
    model.set_adapter("other")
    second = model(x)
    first.square().sum().backward()
    got, x.grad = x.grad, None
    wanted = input_gradient(lambda x: reference(plain, model, x), x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    second.square().sum().backward()
    wanted = input_gradient(lambda x: reference(plain, model, x, ["other"]), x)
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(got, wanted)


@pytest.mark.parametrize("way", ["connection-major", "row-major"], indirect=True)
def test_backward_after_an_optimizer_step_is_refused():
    _, model = adapted()
    loss = model(inputs()).square().sum()
    loss.backward(retain_graph=True)
    torch.optim.AdamW(trained(model), lr=0.1, fused=True).step()
    with pytest.raises(RuntimeError, match=r"were changed before its backward pass .*Call backward\(\) first"):
        loss.backward()


@pytest.mark.parametrize("way", ["in products only"], indirect=True)
def test_backward_after_an_optimizer_step_is_that_of_its_forward():
    """Where columns are in the weight during products only, those of the forward are kept."""
    plain, model = adapted()
    x = inputs().requires_grad_()
    loss = model(x).square().sum()
    (wanted,) = torch.autograd.grad(reference(plain, model, x).square().sum(), x)
    for parameter in trained(model):
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(trained(model), lr=0.1, fused=True).step()
    loss.backward()
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-12)


def test_backward_after_unload_leaves_the_base_model_alone():
    """It wrote the columns into the weight once more, and nobody was left to take them out."""
    plain, model = adapted()
    loss = model(inputs()).square().sum()
    wanted = torch.autograd.grad(reference(plain, model, inputs()).square().sum(), trained(model))
    updates = trained(model)
    base = model.unload()
    assert torch.equal(base(inputs()), plain(inputs()))
    loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in updates], list(wanted), rtol=0, atol=1e-12)
    assert torch.equal(base(inputs()), plain(inputs()))


class Blocks(nn.Module):
    """The plain or adapted model twice over, each time under a checkpoint."""

    def __init__(self, body, reentrant):
        super().__init__()
        self.body, self.reentrant = body, reentrant
        self.back = nn.Linear(4, 10).double().requires_grad_(False)

    def forward(self, x):
        for _ in range(2):
            x = self.back(self.run(x))
        return x

    def run(self, x):
        return self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    gradients = []
    for mode in (None, reentrant):
        _, model = adapted()
        torch.manual_seed(3)
        blocks = Blocks(model, mode)
        train_with_input_gradients(blocks, model)
        x = inputs().requires_grad_()
        blocks(x).square().sum().backward()
        assert_resident(model)
        gradients.append([x.grad, *(parameter.grad for parameter in trained(model))])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def train_with_input_gradients(blocks, model):
    optimizer = torch.optim.AdamW(trained(model), lr=0.1, fused=True)
    blocks(inputs().requires_grad_()).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_checkpointing_with_an_optimizer_inside_backward():
    """A recomputed forward comes after the steps of the layers above it."""
    curves = []
    for mode in (None, False):
        _, model = adapted()
        step_during_backward(model)
        curve = []
        for _ in range(3):
            body = model if mode is None else lambda x, model=model: checkpoint(model, x, use_reentrant=False)
            loss = body(inputs().requires_grad_()).square().mean()
            loss.backward()
            curve.append(loss.item())
        curves.append(curve)
    torch.testing.assert_close(curves[1], curves[0], rtol=0, atol=1e-12)


def test_training_after_inference_mode():
    """Tensors made in inference mode may not be used in training."""
    plain, model = adapted()
    model.add_adapter("other", config(random_seed=1))
    model.base_model.set_adapter(["default", "other"])
    with torch.inference_mode():
        model(inputs())
        with model.disable_adapter():
            assert torch.equal(model(inputs()), plain(inputs()))
        model(inputs())
    train(model)
    with torch.inference_mode(), model.disable_adapter():
        torch.testing.assert_close(model(inputs()), plain(inputs()), rtol=0, atol=1e-12)
    train(model)
    wanted = reference(plain, model, inputs(), ["default", "other"])
    torch.testing.assert_close(model(inputs()), wanted, rtol=0, atol=1e-12)


class OwnForward(nn.Linear):
    """Computes something else than its weight's product."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_base_layer_with_a_forward_of_its_own_is_adapted_beside_it():
    """The weight of such a layer is not written: nobody knows what its forward does with it."""
    plain, _ = adapted()
    plain.one = OwnForward(10, 12).double()
    before = plain.one.weight.clone()
    wrapped = get_peft_model(plain, config())
    layer = layers(wrapped)["one"]
    x = inputs()
    y = layer(x)
    assert not layer.holds_columns()
    assert torch.equal(layer.base_layer.weight, before)
    part = x[:, layer.paca_indices["default"]] @ layer.paca_delta["default"].t()
    torch.testing.assert_close(y, layer.base_layer(x) + part, rtol=0, atol=1e-12)
    y.sum().backward()
    assert layer.paca_delta["default"].grad is not None


def test_a_forward_replaced_in_mid_training_adds_the_update_once():
    """The weight still showed the columns when an engine took the layer's forward: the update counted twice."""
    plain, model = adapted()
    wanted = model(inputs())
    assert_resident(model)
    for layer in layers(model).values():
        layer.base_layer.forward = layer.base_layer.forward
    torch.testing.assert_close(model(inputs()), wanted, rtol=0, atol=1e-12)
    assert_pretrained(plain, model)
    for layer in layers(model).values():
        del layer.base_layer.forward
    torch.testing.assert_close(model(inputs()), wanted, rtol=0, atol=1e-12)
    assert_resident(model)


def test_a_trainable_base_weight_is_refused():
    """It would get no gradient, without a word."""
    _, model = adapted()
    layers(model)["one"].base_layer.weight.requires_grad_(True)
    with pytest.raises(paca.PacaError, match=r"only its columns are trained\. Freeze it"):
        model(inputs())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("way", ["connection-major"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_compiled_model_and_a_compiled_step(kind, fused):
    plain, model = adapted(kind)
    compiled = torch.compile(model, fullgraph=True)
    optimizer = torch.optim.AdamW(trained(model), lr=0.1, fused=fused)
    step = optimizer.step if fused else torch.compile(optimizer.step)
    curve = []
    for _ in range(4):
        y, wanted = compiled(inputs()), reference(plain, model, inputs())
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
        grads = torch.autograd.grad(wanted.square().mean(), trained(model))
        y.square().mean().backward()
        torch.testing.assert_close([p.grad for p in trained(model)], list(grads), rtol=0, atol=1e-12)
        step()
        optimizer.zero_grad()
        curve.append(y.square().mean().item())
    assert curve == sorted(curve, reverse=True)
    assert_resident(model)
    with model.disable_adapter():
        assert_pretrained(plain, model)
        torch.testing.assert_close(compiled(inputs()), plain(inputs()), rtol=0, atol=1e-12)
    torch.testing.assert_close(compiled(inputs()), reference(plain, model, inputs()), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("way", ["connection-major"], indirect=True)
def test_whatever_changes_columns_reaches_a_compiled_model():
    plain, model = adapted()
    model.add_adapter("other", config(random_seed=1))
    compiled = torch.compile(model, fullgraph=True)
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def assert_same_as_reference(*adapters):
        y = compiled(inputs())
        torch.testing.assert_close(y, reference(plain, model, inputs(), adapters), rtol=0, atol=1e-12)
        return y.detach()

    seen = [assert_same_as_reference("default")]
    model.set_adapter("other")
    seen.append(assert_same_as_reference("other"))
    model.base_model.set_adapter(["default", "other"])
    seen.append(assert_same_as_reference("default", "other"))
    model.base_model.set_adapter("default")
    for layer in layers(model).values():
        layer.set_scale("default", 3)
    seen.append(assert_same_as_reference("default"))
    train(model)
    seen.append(assert_same_as_reference("default"))
    model.load_state_dict(start)
    seen.append(assert_same_as_reference("default"))
    model.merge_adapter()
    assert_same_as_reference("default")
    model.unmerge_adapter()
    assert_same_as_reference("default")
    with torch.no_grad():
        for parameter in trained(model):
            parameter.mul_(3)
    seen.append(assert_same_as_reference("default"))
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(seen))
    with model.disable_adapter():
        assert_pretrained(plain, model)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("way", ["connection-major"], indirect=True)
def test_a_compiled_model_with_a_reference_forward_between_forward_and_backward():
    plain, model = adapted()
    compiled = torch.compile(model, fullgraph=True)
    policy = compiled(inputs())
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(compiled(inputs()), plain(inputs()), rtol=0, atol=1e-12)
    policy.square().sum().backward()
    wanted = torch.autograd.grad(reference(plain, model, inputs()).square().sum(), trained(model))
    torch.testing.assert_close([p.grad for p in trained(model)], list(wanted), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("way", ["connection-major"], indirect=True)
def test_hooks_on_the_base_layer_of_a_compiled_model():
    """`del module.forward`, after the hooks had fired around a forward put in its place, could not be compiled."""
    plain, model = adapted()
    for owner in (plain.one, layers(model)["one"].base_layer):
        owner.register_forward_hook(lambda _, args, y: y * 2)
    y = torch.compile(model, fullgraph=True)(inputs())
    wanted = reference(plain, model, inputs())
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(wanted.square().sum(), trained(model))
    y.square().sum().backward()
    torch.testing.assert_close([p.grad for p in trained(model)], list(grads), rtol=0, atol=1e-12)
