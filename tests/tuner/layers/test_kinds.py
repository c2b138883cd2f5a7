"""What is promised of every kind of layer, tested with the same words for each."""

import copy
import io

import pytest
import torch
from peft import PeftModel
from tests.toys import assert_resident, in_products_only, trained
from tests.tuner.layers.every import KINDS, adapted, config, full_weights, inputs, reference, weights_of
from torch.utils.checkpoint import checkpoint

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 8e-2}
kinds = pytest.mark.parametrize("kind", KINDS)
plain_kinds = pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("Embedding, ")])
both_ends = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
EXPERTS = "experts"


def assert_close(got, exact, dtype=torch.float64):
    bound = TOLERANCE[dtype] * max(1.0, exact.abs().max().item())
    torch.testing.assert_close(got.double(), exact.double(), rtol=0, atol=bound)


def differentiable(x):
    return [part.requires_grad_() for part in x if part.is_floating_point()]


def train(kind, model, steps=3, dtype=torch.float64):
    optimizer = torch.optim.AdamW(trained(model), lr=0.1)
    for _ in range(steps):
        model(*inputs(kind, dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_pretrained(plain, model):
    """As whoever looks at the parameters themselves finds them."""
    for name, layer in weights_of(model).items():
        assert torch.equal(layer.base_weight, plain.get_parameter(name)), name


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_and_gradients_are_those_of_full_fine_tuning(kind, dtype):
    plain, model = adapted(kind, dtype)
    x, exact_x = inputs(kind, dtype), inputs(kind, dtype)
    wrt, exact_wrt = differentiable(x), differentiable(exact_x)
    y, wanted = model(*x), reference(kind, plain, model, exact_x)
    assert not torch.allclose(y.double(), plain(*x).double(), atol=0.01), "the adapter is to change the output"
    assert_resident(model)
    assert_close(y, wanted, dtype)
    grads = torch.autograd.grad(y.double().square().sum(), [*trained(model), *wrt])
    exact = torch.autograd.grad(wanted.square().sum(), [*trained(model), *exact_wrt])
    for got, right in zip(grads, exact, strict=True):
        assert_close(got, right, dtype)


@kinds
def test_an_output_may_be_changed_in_place(kind):
    """Autograd forbids it for a view made within a function: RoCBert adds to what a linear layer returns."""
    plain, model = adapted(kind)
    for net in (plain, model.get_base_model()):
        net.call = lambda *inputs, call=net.call: call(*inputs).mul_(2)
    y, wanted = model(*inputs(kind)), reference(kind, plain, model, inputs(kind))
    assert_close(y, wanted)
    exact = torch.autograd.grad(wanted.square().sum(), trained(model))
    for got, right in zip(torch.autograd.grad(y.square().sum(), trained(model)), exact, strict=True):
        assert_close(got, right)


@kinds
def test_the_gradient_is_full_fine_tuning_s_restricted_to_the_connections(kind):
    """Against autograd on the whole weight: no formula of `Δ` takes part in the reference."""
    plain, model = adapted(kind)
    whole = copy.deepcopy(plain)
    for name, weight in full_weights(kind, plain, model).items():
        whole.get_parameter(name).data = weight.detach()
    whole(*inputs(kind)).square().sum().backward()
    model(*inputs(kind)).square().sum().backward()
    for name, layer in weights_of(model).items():
        grad = whole.get_parameter(name).grad
        for place, index in enumerate(layer.paca_indices["default"].tolist()):
            got = layer.paca_delta["default"].grad.select(layer.delta_dim, place) / layer.scaling["default"]
            there = KINDS[kind].add(torch.zeros_like(grad), index, torch.ones_like(got)) > 0
            torch.testing.assert_close(got.flatten(), grad[there], rtol=0, atol=1e-10)


@kinds
def test_only_the_selected_channels_are_kept(kind):
    kept = [0, 0]
    for run, rank in enumerate((1, 3)):
        _, model = adapted(kind, r=rank)
        model(*inputs(kind))

        def keep(tensor, run=run):
            kept[run] += tensor.numel() if tensor.is_floating_point() else 0
            return tensor.detach()  # an output itself would hold its graph for ever

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(*inputs(kind))
    assert kept[1] - kept[0] == 2 * KINDS[kind].kept


@plain_kinds
@both_ends
def test_disabled_and_unloaded_every_bit_is_the_pretrained_one(kind, dtype):
    plain, model = adapted(kind, dtype)
    train(kind, model, dtype=dtype)
    x = inputs(kind, dtype)
    with model.disable_adapter():
        assert_pretrained(plain, model)
        with torch.no_grad():  # frozen: how PyTorch multiplies depends on whether a weight is to be trained
            assert torch.equal(model(*x), plain.requires_grad_(False)(*x))
    state = model.get_base_model().state_dict()
    found = {name.replace("base_layer.", ""): value for name, value in state.items() if "paca_" not in name}
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in found.items())
    assert len(found) == len(plain.state_dict())
    bare = model.unload()
    assert [name for name, _ in bare.named_modules()] == [name for name, _ in plain.named_modules()]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in bare.state_dict().items())


@plain_kinds
@both_ends
def test_merged_it_computes_the_same_and_unmerged_every_bit_is_back(kind, dtype):
    plain, model = adapted(kind, dtype)
    train(kind, model, dtype=dtype)
    x = inputs(kind, dtype)
    wanted = reference(kind, plain, model, x)
    assert_close(model(*x), wanted, dtype)
    dense = {name: layer.get_delta_weight("default") for name, layer in weights_of(model).items()}
    model.merge_adapter()
    assert_close(model(*x), wanted, dtype)
    model.unmerge_adapter()
    assert_pretrained(plain, model)
    merged = model.merge_and_unload(safe_merge=True)
    assert [name for name, _ in merged.named_modules()] == [name for name, _ in plain.named_modules()]
    assert_close(merged(*x), wanted, dtype)
    for name, update in dense.items():
        assert_close(merged.get_parameter(name), plain.get_parameter(name).double() + update.double(), dtype)


@plain_kinds
@both_ends
def test_saved_and_loaded_it_computes_the_same(kind, dtype, tmp_path):
    plain, model = adapted(kind, dtype)
    train(kind, model, dtype=dtype)
    wanted = model(*inputs(kind, dtype))
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, autocast_adapter_dtype=False)
    assert weights_of(fresh).keys() == weights_of(model).keys()
    assert_close(fresh(*inputs(kind, dtype)), wanted, dtype)
    assert_close(fresh.merge_and_unload()(*inputs(kind, dtype)), wanted, dtype)


@plain_kinds
def test_several_adapters_on_one_layer(kind):
    plain, model = adapted(kind)
    model.add_adapter("other", config(kind, random_seed=3))
    for active in (["other"], ["default", "other"], ["default"]):
        model.base_model.set_adapter(active)
        assert_close(model(*inputs(kind)), reference(kind, plain, model, inputs(kind), active))
    model.base_model.set_adapter(["default", "other"])
    y, wanted = model(*inputs(kind)), reference(kind, plain, model, inputs(kind), ["default", "other"])
    grads, exact = (torch.autograd.grad(out.square().sum(), trained(model)) for out in (y, wanted))
    for got, right in zip(grads, exact, strict=True):
        assert_close(got, right)
    model.delete_adapter("other")
    assert_close(model(*inputs(kind)), reference(kind, plain, model, inputs(kind)))
    with model.disable_adapter():
        assert_pretrained(plain, model)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != EXPERTS and "Attention" not in kind])
def test_each_row_with_its_own_adapter(kind):
    plain, model = adapted(kind)
    model.add_adapter("other", config(kind, random_seed=3))
    model.eval()
    (x,) = inputs(kind)
    y = model(x, adapter_names=["other", "__base__"])
    assert_close(y[:1], reference(kind, plain, model, (x[:1],), ["other"]))
    assert_close(y[1:], plain(x[1:]))


@plain_kinds
@pytest.mark.parametrize("lent", ["for a call", "for a product"])
@pytest.mark.parametrize("merged", [False, True])
def test_copies_and_pickles_are_independent_and_complete(kind, merged, lent, monkeypatch):
    if lent == "for a product":
        in_products_only(monkeypatch)
    _, model = adapted(kind)
    if kind == EXPERTS:
        model.get_base_model().call = None  # a function within the test's table cannot be pickled
    train(kind, model) if kind != EXPERTS else None
    layer = model.get_base_model().layer
    if merged:
        model.merge_adapter()
    x = inputs(kind)
    wanted = KINDS[kind].call(layer, *x)
    for twin in (copy.deepcopy(layer), _pickled(layer)):
        torch.testing.assert_close(KINDS[kind].call(twin, *x), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(KINDS[kind].call(layer, *x), wanted, rtol=0, atol=1e-12)


def _pickled(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@plain_kinds
def test_backward_finds_the_columns_of_its_forward(kind):
    plain, model = adapted(kind)
    x = inputs(kind)
    wrt = differentiable(x)
    y = model(*x)
    with model.disable_adapter():
        model(*inputs(kind))
    grads = torch.autograd.grad(y.square().sum(), [*trained(model), *wrt])
    exact = torch.autograd.grad(reference(kind, plain, model, x).square().sum(), [*trained(model), *wrt])
    for got, right in zip(grads, exact, strict=True):
        assert_close(got, right)


@plain_kinds
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(kind, reentrant):
    _, model = adapted(kind)
    gradients = []
    for use in (False, True):
        x = inputs(kind)
        if reentrant and not differentiable(x):
            pytest.skip("a reentrant checkpoint needs an input that requires a gradient, and ids cannot")
        y = checkpoint(model, *x, use_reentrant=reentrant) if use else model(*x)
        model.zero_grad()
        y.square().sum().backward()
        gradients.append([parameter.grad for parameter in trained(model)])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@plain_kinds
def test_autocast(kind):
    plain, model = adapted(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(*inputs(kind, torch.float32))
    wanted = reference(kind, plain, model, inputs(kind))
    assert_close(y, wanted, torch.bfloat16)
    grads = torch.autograd.grad(y.double().square().sum(), trained(model))
    exact = torch.autograd.grad(wanted.square().sum(), trained(model))
    for got, right in zip(grads, exact, strict=True):
        assert got.dtype == torch.float32
        assert_close(got, right, torch.bfloat16)


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


COMPILED = ["Conv2d", "Conv2d, grouped", "Conv2d, depthwise", "Embedding, padded", "MultiheadAttention"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", COMPILED)
def test_a_compiled_model_trains_as_an_uncompiled_one(kind):
    plain, model = adapted(kind)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.AdamW(trained(model), lr=0.1)
    for _ in range(3):
        y, wanted = compiled(*inputs(kind)), reference(kind, plain, model, inputs(kind))
        assert_close(y, wanted)
        exact = torch.autograd.grad(wanted.square().mean(), trained(model))
        y.square().mean().backward()
        for parameter, right in zip(trained(model), exact, strict=True):
            assert_close(parameter.grad, right)
        optimizer.step()
        optimizer.zero_grad()
    assert_resident(model)
    with model.disable_adapter(), torch.no_grad():
        assert_close(compiled(*inputs(kind)), plain(*inputs(kind)))
    with torch.no_grad():
        assert_close(compiled(*inputs(kind)), reference(kind, plain, model, inputs(kind)))
