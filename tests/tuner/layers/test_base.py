"""What PEFT promises of every tuner: several adapters, switching, disabling, merging, copying, saving."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from tests.toys import (
    KINDS,
    Toy,
    adapted,
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
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrize import register_parametrization

from paca import PacaError, PacaLayer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["for a call", "for a product"], autouse=True)
def lent(request, monkeypatch):
    """How long columns are in the weights; for a product only where somebody else looks at the same memory."""
    if request.param == "for a product":
        in_products_only(monkeypatch)


def two(kind="Linear", dtype=torch.float64, **options):
    """A plain model, and one with the adapters `default` (active) and `other`, which share connections."""
    plain, model = adapted(kind, dtype, r=6)
    model.add_adapter("other", config(random_seed=1, r=6, paca_alpha=9, **options))
    for layer in layers(model).values():
        shared = set(layer.paca_indices["default"].tolist()) & set(layer.paca_indices["other"].tolist())
        assert shared, "the adapters are to overlap"
    return plain, model


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=TOLERANCE[a.dtype], atol=TOLERANCE[a.dtype])


# Several adapters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_adapter_alone_and_both_at_once(kind, dtype):
    plain, model = two(kind, dtype)
    outputs = []
    for active in (["default"], ["other"], ["default", "other"], ["default"]):
        model.base_model.set_adapter(active)
        outputs.append(model(inputs(dtype)))
        assert_close(outputs[-1], reference(plain, model, inputs(dtype), active))
        assert_resident(model)
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.allclose(outputs[0], outputs[1], atol=0.01)
    assert not torch.allclose(outputs[0], outputs[2], atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_share_connections_train_together(kind):
    plain, model = two(kind)
    model.base_model.set_adapter(["default", "other"])
    train(model)
    model(inputs()).square().sum().backward()
    wanted = torch.autograd.grad(
        reference(plain, model, inputs(), ["default", "other"]).square().sum(), trained(model)
    )
    torch.testing.assert_close([p.grad for p in trained(model)], list(wanted), rtol=0, atol=1e-11)


def test_training_changes_the_active_adapter_and_nothing_else():
    _, model = two()
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    train(model)
    changed = {name for name, parameter in model.state_dict().items() if not torch.equal(parameter, before[name])}
    assert changed == {f"base_model.model.{name}.paca_delta.default" for name in layers(model)}


def test_requires_grad_follows_the_active_adapters():
    _, model = two()

    def trainable():
        return {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}

    assert trainable() == {"default"}
    model.set_adapter("other")
    assert trainable() == {"other"}
    model.base_model.set_adapter(["default", "other"])
    assert trainable() == {"default", "other"}
    with model.disable_adapter():
        assert trainable() == set()
    assert trainable() == {"default", "other"}
    model.set_adapter("default", inference_mode=True)
    assert trainable() == set()
    model.set_requires_grad("other")
    assert trainable() == {"other"}
    model.set_requires_grad("other", requires_grad=False)
    model.delete_adapter("default")
    assert trainable() == {"other"}


def test_names_that_contain_each_other(tmp_path):
    """A name inside another, or inside the method's own names, is no prefix of a key."""
    _, model = adapted()
    names = ["default", "default_2", "def", "delta"]
    for seed, name in enumerate(names[1:], 1):
        model.add_adapter(name, config(random_seed=seed))
    outputs = {}
    for name in names:
        model.set_adapter(name)
        outputs[name] = model(inputs())
    model.save_pretrained(tmp_path)
    for name in names:
        folder = tmp_path if name == "default" else tmp_path / name
        fresh = PeftModel.from_pretrained(adapted()[0], folder, adapter_name=name)
        assert_close(fresh(inputs()), outputs[name])
    model.delete_adapter("def")
    model.set_adapter("default_2")
    assert torch.equal(model(inputs()), outputs["default_2"])


@pytest.mark.parametrize("name", ["default", "other"])
def test_deleting_an_adapter_leaves_the_other_alone(name):
    plain, model = two()
    rest = "other" if name == "default" else "default"
    model(inputs())
    model.delete_adapter(name)
    assert model.active_adapters == [rest]
    assert_close(model(inputs()), reference(plain, model, inputs(), [rest]))
    assert all(name not in key for key in model.state_dict())
    for layer in layers(model).values():
        assert list(layer.r) == list(layer.scaling) == list(layer.paca_alpha) == list(layer.paca_delta) == [rest]


def test_deleting_what_is_not_there_or_merged_is_refused():
    plain, model = two()
    before = model(inputs())
    with pytest.raises(ValueError, match="Adapter unknown does not exist"):
        model.delete_adapter("unknown")
    model.merge_adapter(["default"])
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    model.delete_adapter("other")
    assert_close(model(inputs()), before)
    model.unmerge_adapter()
    assert_close(model(inputs()), before)
    with model.disable_adapter():
        assert_pretrained(plain, model)


def test_an_adapter_that_comes_while_another_is_merged():
    plain, model = adapted()
    before = model(inputs())
    model.merge_adapter()
    model.add_adapter("other", config(random_seed=1, target_modules=["one", "two", "head"]))
    assert_close(model(inputs()), before)
    model.unmerge_adapter()
    assert_close(model(inputs()), before)
    model.set_adapter("other")
    assert_close(model(inputs()), reference(plain, model, inputs(), ["other"]))


def test_a_layer_that_only_one_adapter_targets():
    plain, model = adapted(target_modules=["one"])
    model.add_adapter("other", config(random_seed=1, target_modules=["two"]))
    for active in (["default"], ["other"], ["default", "other"], ["default"]):
        model.base_model.set_adapter(active)
        assert_close(model(inputs()), reference(plain, model, inputs(), active))


# Disabling


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_pretrained_model_bit_for_bit(kind, dtype, merged):
    plain, model = adapted(kind, dtype)
    train(model, dtype=dtype)
    if merged:
        model.merge_adapter()
    before = model(inputs(dtype))
    assert not torch.allclose(before, plain(inputs(dtype)))
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(model(inputs(dtype)), plain(inputs(dtype)))
        assert torch.equal(model(inputs(dtype)), plain(inputs(dtype)))
        assert_pretrained(plain, model)
    assert_close(model(inputs(dtype)), before)
    assert all(layer.merged is merged for layer in layers(model).values())


def test_unmerged_while_disabled_stays_unmerged():
    _, model = adapted()
    before = model(inputs())
    model.merge_adapter()
    with model.disable_adapter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.unmerge_adapter()
    assert not any(layer.merged for layer in layers(model).values())
    assert_close(model(inputs()), before)


# Merging


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merged_gives_the_same_and_unmerged_every_bit(kind, dtype, safe_merge):
    plain, model = adapted(kind, dtype)
    train(model, dtype=dtype)
    before = model(inputs(dtype))
    model.merge_adapter(safe_merge=safe_merge)
    assert_close(model(inputs(dtype)), before)
    for name, layer in layers(model).items():
        assert layer.merged_adapters == ["default"]
        assert not torch.equal(layer.base_layer.weight, plain.get_submodule(name).weight)
    model.unmerge_adapter()
    assert_close(model(inputs(dtype)), before)
    assert torch.equal(model.unload()(inputs(dtype)), plain(inputs(dtype)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_merge_and_unload_is_a_plain_model(kind, dtype):
    plain, model = adapted(kind, dtype)
    train(model, dtype=dtype)
    before = model(inputs(dtype))
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is Toy
    assert not any(isinstance(module, PacaLayer) for module in merged.modules())
    assert {key: value.shape for key, value in merged.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert all(parameter.is_contiguous() for parameter in merged.parameters())
    assert_close(merged(inputs(dtype)), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_adapted_columns_are_merged(dtype):
    plain, model = adapted(dtype=dtype)
    connections = {name: layer.paca_indices["default"].tolist() for name, layer in layers(model).items()}
    merged = model.merge_and_unload()
    for name, chosen in connections.items():
        changed = (merged.get_submodule(name).weight != plain.get_submodule(name).weight).any(0).nonzero()[:, 0]
        assert changed.tolist() == chosen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_in_sequence_equals_merging_at_once(kind, dtype):
    plain, model = two(kind, dtype)
    model.merge_adapter(["default", "other"])
    at_once = {name: layer.base_layer.weight.clone() for name, layer in layers(model).items()}
    model.unmerge_adapter()
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged default"):
        model.merge_adapter(["other"])
    for name, layer in layers(model).items():
        assert torch.equal(layer.base_layer.weight, at_once[name])
        assert layer.merged_adapters == ["default", "other"]
    assert_close(model(inputs(dtype)), reference(plain, model, inputs(dtype), ["default", "other"]))
    model.unmerge_adapter()
    with model.disable_adapter():
        assert_pretrained(plain, model)


def test_merging_twice_changes_nothing():
    _, model = adapted()
    model.merge_adapter()
    before = model(inputs())
    with pytest.warns(UserWarning, match="nothing to do"):
        model.merge_adapter()
    assert torch.equal(model(inputs()), before)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_safe_merge_merges_every_layer_or_none(way, value):
    """The first layer was merged, and even unwrapped, before the second was found to hold a NaN."""
    plain, model = adapted()
    with torch.no_grad():
        layers(model)["two"].paca_delta["default"][0, 0] = value
    with pytest.raises(
        PacaError,
        match=r"NaNs detected in the merged weights. The adapter default seems to be broken: .* Nothing was merged",
    ):
        getattr(model, way)(safe_merge=True)
    assert list(layers(model)) == ["one", "two"]
    assert not any(layer.merged for layer in layers(model).values())
    with model.disable_adapter():
        assert_pretrained(plain, model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unload_gives_every_bit_back(dtype):
    plain, model = adapted(dtype=dtype)
    train(model, dtype=dtype)
    model(inputs(dtype))
    base = model.unload()
    for name, value in plain.state_dict().items():
        assert torch.equal(base.state_dict()[name], value)
    assert all(parameter.is_contiguous() for parameter in base.parameters())


def test_a_step_while_merged_does_not_move_the_merged_weight():
    plain, model = adapted()
    optimizer = torch.optim.AdamW(trained(model), lr=0.1, fused=True)
    model(inputs()).square().sum().backward()
    model.merge_adapter()
    before = model(inputs())
    optimizer.step()
    assert torch.equal(model(inputs()), before)
    model.unmerge_adapter()
    assert_close(model(inputs()), reference(plain, model, inputs()))


# Scaling and the dense update


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_update_is_what_merging_adds(kind):
    plain, model = adapted(kind, paca_alpha=7)
    dense = {name: layer.get_delta_weight("default") for name, layer in layers(model).items()}
    merged = model.merge_and_unload()
    for name, update in dense.items():
        assert update.abs().sum() > 0
        assert_close(plain.get_submodule(name).weight + update, merged.get_submodule(name).weight)


def test_scaling_multiplies_the_update():
    plain, model = adapted(paca_alpha=6)
    layer = layers(model)["one"]
    assert layer.scaling["default"] == 2
    outputs = [model(inputs())]
    for change in (
        lambda: layer.scale_layer(3),
        lambda: layer.unscale_layer(2),
        lambda: layer.set_scale("default", 0.5),
        lambda: layer.set_scale("unknown", 0.5),
        layer.unscale_layer,
    ):
        change()
        outputs.append(model(inputs()))
        assert_close(outputs[-1], reference(plain, model, inputs()))
    assert not torch.allclose(outputs[0], outputs[1])
    assert torch.equal(outputs[3], outputs[4])
    assert torch.equal(outputs[0], outputs[5])


# Mixed batches


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_with_its_own_adapter(kind):
    plain, model = two(kind)
    model.eval()
    x = inputs()
    names = ["default", "__base__", "other", "other", "__base__", "default"]
    y = model(x, adapter_names=names)
    for row, name in enumerate(names):
        wanted = reference(plain, model, x[row : row + 1], [] if name == "__base__" else [name])
        assert_close(y[row : row + 1], wanted)
    assert_close(model(x), reference(plain, model, x))
    assert_resident(model)


def test_rows_of_a_mixed_batch_get_the_modules_saved_with_their_adapter():
    plain, model = adapted(modules_to_save=["head"])
    model.add_adapter("other", config(random_seed=1, modules_to_save=["head"]))
    heads = model.base_model.model.head.modules_to_save
    for head in heads.values():
        nn.init.normal_(head.weight)
    model.eval()
    x = inputs()
    names = ["default", "__base__", "other", "other", "__base__", "default"]
    y = model(x, adapter_names=names)
    for row, name in enumerate(names):
        alone = copy.deepcopy(plain)
        alone.head = alone.head if name == "__base__" else heads[name]
        wanted = reference(alone, model, x[row : row + 1], [] if name == "__base__" else [name])
        assert_close(y[row : row + 1], wanted)


def test_mixed_batches_that_cannot_be():
    _, model = two()
    x = inputs()
    with pytest.raises(PacaError, match="when the model is in training mode"):
        model(x, adapter_names=["default"] * 6)
    model.eval()
    with pytest.raises(PacaError, match="same as the number of inputs, but got 2 and 6"):
        model(x, adapter_names=["default", "other"])
    with pytest.raises(PacaError, match=r"non-existing adapter\(s\): oter\. Known are __base__, default, other"):
        model(x, adapter_names=["oter"] * 6)
    model.merge_adapter()
    with pytest.raises(PacaError, match="please call `unmerge_adapter` first"):
        model(x, adapter_names=["default"] * 6)
    assert not any(layer._forward_pre_hooks for layer in layers(model).values())


# Hooks


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_the_base_layer_fire_and_may_change_things(kind, gradients):
    plain, model = adapted(kind)
    seen = []
    for owner in (plain.one, layers(model)["one"].base_layer):
        owner.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        owner.register_forward_hook(lambda _, args, y: seen.append(args[0]) or y + 1)
    with torch.set_grad_enabled(gradients):
        y = model(inputs())
    assert len(seen) == 1
    assert_close(y, reference(plain, model, inputs()))
    if not gradients:
        return
    wanted = torch.autograd.grad(reference(plain, model, inputs()).square().sum(), trained(model))
    y.square().sum().backward()
    torch.testing.assert_close([p.grad for p in trained(model)], list(wanted), rtol=0, atol=1e-12)
    assert "forward" not in layers(model)["one"].base_layer.__dict__
    assert_resident(model)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_all_modules_fire_for_the_base_layer_too(kind, gradients):
    plain, model = adapted(kind)
    seen = []
    wanted = reference(plain, model, inputs())
    handle = register_module_forward_hook(lambda module, args, y: seen.append(type(module)))
    try:
        with torch.set_grad_enabled(gradients):
            assert_close(model(inputs()), wanted)
    finally:
        handle.remove()
    for layer in layers(model).values():
        assert type(layer) in seen
        assert type(layer.base_layer) in seen


class Doubled(nn.Module):
    def forward(self, bias):
        return 2 * bias


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_that_is_computed_is_asked_for_in_each_call(kind):
    plain, model = adapted(kind)
    for owner in (plain.one, layers(model)["one"].base_layer):
        with torch.no_grad():
            owner.bias.fill_(3)
        register_parametrization(owner, "bias", Doubled())
    with torch.no_grad():
        assert_close(model(inputs()), reference(plain, model, inputs()))
        layers(model)["one"].base_layer.parametrizations.bias.original.zero_()
        plain.one.parametrizations.bias.original.zero_()
        assert_close(model(inputs()), reference(plain, model, inputs()))


def test_backward_hooks_on_the_base_layer_fire():
    _, model = adapted()
    seen = []
    layers(model)["two"].base_layer.register_full_backward_hook(lambda _, into, out: seen.append(into[0].shape))
    model(inputs()).sum().backward()
    assert seen == [(6, 12)]


# Precision


def test_autocast_adapter_dtype():
    for asked, got in ((True, torch.float32), (False, torch.bfloat16)):
        model = get_peft_model(Toy().to(torch.bfloat16), config(), autocast_adapter_dtype=asked)
        layer = layers(model)["one"]
        assert layer.paca_delta["default"].dtype == got
        assert layer.base_layer.weight.dtype == torch.bfloat16
        assert model(inputs(torch.bfloat16)).dtype == torch.bfloat16
        assert_resident(model)


@pytest.mark.parametrize("merged", [False, True])
def test_another_dtype_in_mid_training(merged):
    plain, model = adapted(dtype=torch.float32)
    train(model, dtype=torch.float32)
    if merged:
        model.merge_adapter()
    model.to(torch.bfloat16)
    if merged:
        model.unmerge_adapter()
    assert_close(
        model(inputs(torch.bfloat16)), reference(copy.deepcopy(plain).bfloat16(), model, inputs(torch.bfloat16))
    )
    with model.disable_adapter():
        assert_pretrained(plain.bfloat16(), model)


# Reports


def test_print_trainable_parameters(capsys):
    _, model = adapted(r=3)
    model.print_trainable_parameters()
    trainable, everything = 3 * 12 + 3 * 10, (10 * 12 + 12) + (12 * 10 + 10) + (10 * 4 + 4)
    assert f"trainable params: {trainable} || all params: {trainable + everything}" in capsys.readouterr().out


def test_layer_status_tells_each_state():
    _, model = two()
    status = {entry.name: entry for entry in model.get_layer_status()}
    assert sorted(status) == ["model.one", "model.two"]
    entry = status["model.one"]
    assert (entry.module_type, entry.enabled) == ("paca.Linear", True)
    assert entry.active_adapters == ["default"]
    assert entry.available_adapters == ["default", "other"]
    assert entry.requires_grad == {"default": True, "other": False}
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]


# Copies and state dicts: from outside, the weight is the pretrained one


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.load(_saved(model), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_is_independent_and_complete(dtype, merged, copied):
    plain, model = adapted(dtype=dtype)
    train(model, dtype=dtype)
    before = model(inputs(dtype))
    if merged:
        model.merge_adapter()
    twin = copied(model)
    assert_close(twin(inputs(dtype)), before)
    if merged:
        twin.unmerge_adapter()
        assert all(layer.merged for layer in layers(model).values())
    else:
        train(twin, dtype=dtype)
        assert not torch.equal(twin(inputs(dtype)), before)
    assert_close(model(inputs(dtype)), before)
    assert torch.equal(twin.unload()(inputs(dtype)), plain(inputs(dtype)))


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_dict_in_mid_training_is_pretrained_and_stays_so(kind, dtype):
    """An entry shares memory with the weight; the next forward writes columns there."""
    plain, model = adapted(kind, dtype)
    train(model, dtype=dtype)
    model(inputs(dtype))
    state = model.state_dict()
    for _ in range(2):
        for name in layers(model):
            assert torch.equal(state[f"base_model.model.{name}.base_layer.weight"], plain.get_submodule(name).weight)
        train(model, steps=1, dtype=dtype)
        model(inputs(dtype))
        assert_resident(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_walking_the_parameters_after_a_step_meets_the_pretrained_weight(kind, dtype):
    plain, model = adapted(kind, dtype)
    train(model, dtype=dtype)
    found = dict(model.named_parameters())
    for name in layers(model):
        assert torch.equal(found[f"base_model.model.{name}.base_layer.weight"], plain.get_submodule(name).weight)


def test_walking_the_parameters_in_a_forward_leaves_its_columns_in_place():
    _, model = adapted()
    train(model)
    expected = model(inputs())
    for layer in layers(model).values():
        layer.base_layer.register_forward_pre_hook(lambda *_: list(model.parameters()) and None)
    assert torch.equal(model(inputs()), expected)
    assert_resident(model)


def test_walking_the_parameters_leaves_merged_weights_alone():
    _, model = adapted()
    model.merge_adapter()
    merged = layers(model)["one"].base_layer.weight.clone()
    assert torch.equal(dict(model.named_parameters())["base_model.model.one.base_layer.weight"], merged)


def test_the_state_dict_of_the_base_model_is_pretrained():
    plain, model = adapted()
    train(model)
    model(inputs())
    state = model.get_base_model().state_dict()
    for name in layers(model):
        assert torch.equal(state[f"{name}.base_layer.weight"], plain.get_submodule(name).weight)


def test_a_merged_state_dict_holds_merged_weights():
    plain, model = adapted()
    model.merge_adapter()
    merged = model.state_dict()["base_model.model.one.base_layer.weight"]
    assert not torch.equal(merged, plain.one.weight)
    assert torch.equal(merged, layers(model)["one"].base_layer.weight)


def test_a_state_dict_of_the_parameters_themselves():
    plain, model = adapted()
    before = model(inputs())
    state = model.state_dict(keep_vars=True)
    assert torch.equal(state["base_model.model.one.base_layer.weight"], plain.one.weight)
    assert state["base_model.model.one.paca_delta.default"] is layers(model)["one"].paca_delta["default"]
    assert torch.equal(model(inputs()), before)
    assert_resident(model)


# Saving and loading


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_save_and_load_under_another_seed(tmp_path, kind, low_cpu_mem_usage, dtype):
    plain, model = adapted(kind, dtype, random_seed=None, paca_alpha=5)
    train(model, dtype=dtype)
    before = model(inputs(dtype))
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    for name, layer in layers(fresh).items():
        assert torch.equal(layer.paca_delta["default"], layers(model)[name].paca_delta["default"])
        assert torch.equal(layer.paca_indices["default"], layers(model)[name].paca_indices["default"])
    assert_close(fresh(inputs(dtype)), before)
    assert not torch.allclose(before, plain(inputs(dtype)), atol=0.1)
    assert_resident(fresh)
    assert not trained(fresh)
    assert {p.device.type for p in fresh.parameters()} == {"cpu"}
    assert torch.equal(fresh.unload()(inputs(dtype)), plain(inputs(dtype)))


def test_a_loaded_adapter_goes_on_training(tmp_path):
    plain, model = adapted()
    train(model)
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, is_trainable=True)
    assert len(trained(fresh)) == 2
    assert_close(train(fresh)(inputs()), train(model)(inputs()))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_a_second_adapter_leaves_the_first_active_and_trainable(tmp_path, low_cpu_mem_usage):
    _, model = adapted(random_seed=4)
    model.save_pretrained(tmp_path)
    wanted = model.eval()(inputs())
    _, model = adapted()
    train(model)
    before = model.eval()(inputs())
    model.load_adapter(tmp_path, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(model(inputs()), before)
    assert all(name.endswith("default") for name, p in model.named_parameters() if p.requires_grad)
    model.set_adapter("other")
    assert torch.equal(model(inputs()), wanted)


def test_loading_over_an_adapter_is_seen_at_once(tmp_path):
    _, model = adapted()
    model(inputs())
    model.save_pretrained(tmp_path)
    before = model.eval()(inputs())
    train(model)
    assert not torch.equal(model(inputs()), before)
    model.load_adapter(tmp_path, "default")
    assert torch.equal(model(inputs()), before)


def test_without_peft_model_around_it():
    plain, model = adapted()
    train(model)
    state = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    other = inject_adapter_in_model(config(random_seed=5), copy.deepcopy(plain))
    assert not torch.allclose(other(inputs()), model(inputs()))
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert torch.equal(other(inputs()), model(inputs()))
    again = get_peft_model_state_dict(other)
    assert sorted(f"base_model.model.{key}" for key in again) == sorted(state)


def test_injected_by_the_names_in_a_state_dict():
    plain, model = adapted()
    state = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    other = inject_adapter_in_model(config(target_modules=["one", "two"]), copy.deepcopy(plain), state_dict=state)
    set_peft_model_state_dict(other, state)
    assert sorted(layers(other)) == ["one", "two"]
    assert torch.equal(other(inputs()), model(inputs()))


def test_zero_updates_are_the_pretrained_model_bit_for_bit():
    for dtype in DTYPES:
        plain, model = adapted(dtype=dtype, init_weights=True)
        with torch.no_grad():  # the memory layout for training rounds differently
            assert torch.equal(model(inputs(dtype)), plain(inputs(dtype)))
        assert_resident(model)
