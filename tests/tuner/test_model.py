"""Which layers of a model are adapted and how, and what is refused; a refused call leaves the model as it was."""

import copy
import logging
import time
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from tests.toys import KINDS, Toy, adapted, assert_pretrained, config, inputs, layers, linear, train, trained
from torch import nn

from paca import PacaConfig, PacaError, PacaLayer
from paca.tuner.layers.linear import Conv1DLinear, Linear


class Block(nn.Module):
    def __init__(self, kind="Linear"):
        super().__init__()
        self.q_proj, self.v_proj = linear(kind, 8, 8), linear(kind, 8, 8)
        self.norm = nn.LayerNorm(8, elementwise_affine=False)  # nothing in it can be trained

    def forward(self, x):
        return self.norm(x + self.v_proj(torch.tanh(self.q_proj(x))))


class Stack(nn.Module):
    """Blocks in a list, as language models have them."""

    def __init__(self, kind="Linear", blocks=3):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(Block(kind) for _ in range(blocks))
        self.lm_head = nn.Linear(8, 16)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def stack(**options):
    return get_peft_model(Stack(), PacaConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **options}))


def assert_same_as(model, twin):
    """Whether a model has the structure, the values and the trainability of a copy made before."""
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in twin.named_modules()
    ]
    for (name, a), (other, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad
    assert hasattr(model, "peft_config") == hasattr(twin, "peft_config")


# Switching

SWITCHES = {
    "another": [("other", False), ("third", False), ("default", False)],
    "several": [(["default", "third"], False), (["other"], False), ([], False), ("default", False)],
    "for inference": [("other", True), ("default", False), (["default", "other"], True)],
}


def three(**options):
    model = stack(random_seed=0, init_weights=False, **options)
    for name in ("other", "third"):
        model.add_adapter(name, PacaConfig(r=2, target_modules=["q_proj", "v_proj"], random_seed=1, **options))
    return model.eval()


def pefts_own(model, names, inference_mode):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PacaLayer, "set_adapter", BaseTunerLayer.set_adapter)
        BaseTuner.set_adapter(model.base_model, names, inference_mode=inference_mode)


def assert_switched_as(model, twin):
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad, name
    for one, other in zip(model.modules(), twin.modules(), strict=True):
        assert getattr(one, "active_adapters", None) == getattr(other, "active_adapters", None)
        assert getattr(one, "merged_adapters", None) == getattr(other, "merged_adapters", None)
    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens), twin(tokens))


@pytest.mark.parametrize("merged", [False, True], ids=["", "merged"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["", "trained by hand"])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["", "a head"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_a_switch_means_what_pefts_does(switches, options, by_hand, merged):
    torch.manual_seed(0)
    model = three(**options)
    twin = copy.deepcopy(model)
    for names, inference_mode in SWITCHES[switches]:
        if options and isinstance(names, list) and len(names) != 1:
            continue  # PEFT has one head at a time
        for each in (model, twin):
            if by_hand:
                each.set_requires_grad(["other", "third"])
            if merged and each.base_model.active_adapters:
                each.merge_adapter()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.base_model.set_adapter(names, inference_mode=inference_mode)
            told = len(said)
            pefts_own(twin, names, inference_mode)
        assert len(said) == 2 * told
        assert_switched_as(model, twin)


def test_two_heads_at_once_are_refused_before_anything_is_switched():
    model = three(modules_to_save=["lm_head"])
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="Only one adapter"):
        model.base_model.set_adapter(["default", "other"])
    assert_switched_as(model, before)


def test_a_switch_among_many_adapters_takes_a_fraction_of_pefts_time():
    model = get_peft_model(Stack(blocks=20), PacaConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for number in range(16):
        model.add_adapter(str(number), PacaConfig(r=2, target_modules=["q_proj", "v_proj"]))

    def seconds(switch):
        taken = []
        for name in "123456789":
            start = time.process_time()
            switch(model, name, inference_mode=False)
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(PeftModel.set_adapter) < seconds(pefts_own) / 2


# Targets


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_fits_the_base_layer(kind):
    _, model = adapted(kind)
    for layer in layers(model).values():
        assert type(layer) is {"Linear": Linear, "Conv1D": Conv1DLinear}[kind]
    assert [(layer.in_features, layer.out_features) for layer in layers(model).values()] == [(10, 12), (12, 10)]
    assert [tuple(layer.paca_delta["default"].shape) for layer in layers(model).values()] == [(12, 3), (10, 3)]


TARGETS = {
    "a list of ends": (["q_proj"], [f"layers.{i}.q_proj" for i in range(3)]),
    "a whole name": (["layers.1.v_proj"], ["layers.1.v_proj"]),
    "a regular expression": (r".*\.[02]\.(q|v)_proj", [f"layers.{i}.{n}_proj" for i in (0, 2) for n in "qv"]),
    "all-linear": ("all-linear", [*(f"layers.{i}.{n}_proj" for i in range(3) for n in "qv"), "lm_head"]),
}


@pytest.mark.parametrize(("targets", "names"), TARGETS.values(), ids=TARGETS)
def test_targets(targets, names):
    assert list(layers(stack(target_modules=targets))) == names


def test_exclude_modules():
    assert list(layers(stack(exclude_modules=["layers.1.q_proj", "layers.2.q_proj", "v_proj"]))) == ["layers.0.q_proj"]


@pytest.mark.parametrize("which", [1, [1]])
@pytest.mark.parametrize("pattern", [None, "layers", ["layers", "h"]])
def test_layers_to_transform(which, pattern):
    options = {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": which, "layers_pattern": pattern}
    model = get_peft_model(nn.Sequential(Stack()), PacaConfig(r=2, **options))
    assert list(layers(model)) == ["0.layers.1.q_proj", "0.layers.1.v_proj"]


def test_rank_and_alpha_patterns():
    model = stack(rank_pattern={"q_proj": 5, r"layers\.2\.v_proj": 1}, alpha_pattern={"layers.0.q_proj": 20})
    ranks = {name: layer.r["default"] for name, layer in layers(model).items()}
    assert ranks == {f"layers.{i}.q_proj": 5 for i in range(3)} | {
        "layers.0.v_proj": 2,
        "layers.1.v_proj": 2,
        "layers.2.v_proj": 1,
    }
    assert scalings(model) == {name: 4 if name == "layers.0.q_proj" else 1 for name in ranks}
    model = stack(paca_alpha=2, rank_pattern=model.peft_config["default"].rank_pattern)
    assert scalings(model) == {name: 2 / rank for name, rank in ranks.items()}


def scalings(model):
    return {name: layer.scaling["default"] for name, layer in layers(model).items()}


def test_without_an_alpha_no_rank_scales_its_updates_after_loading_either(tmp_path):
    ranks = {"q_proj": 5, r"layers\.2\.v_proj": 1}
    PacaConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern=ranks).save_pretrained(tmp_path)
    assert set(scalings(get_peft_model(Stack(), PacaConfig.from_pretrained(tmp_path))).values()) == {1}
    assert PacaConfig(r=4, paca_alpha=4, rank_pattern=ranks).alpha_pattern == {}, "an alpha that is given is kept"


def test_a_layer_at_two_places_is_adapted_once_and_stays_shared():
    torch.manual_seed(0)
    plain = Stack(blocks=2).double()
    plain.layers[1] = plain.layers[0]
    plain.again = plain.layers[0].q_proj
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=2, target_modules=["q_proj"], init_weights=False))
    base = model.get_base_model()
    assert base.layers[0].q_proj is base.layers[1].q_proj is base.again
    assert len(layers(model)) == 1
    tokens = torch.arange(6)[None]
    y = model(tokens)
    assert not torch.allclose(y, plain(tokens))
    (delta,) = trained(model)
    y.square().sum().backward()
    torch.testing.assert_close(delta.grad[:2, :1], numerical(model, tokens, delta)[:2, :1], rtol=1e-5, atol=1e-6)
    merged = model.merge_and_unload()
    assert merged.layers[0].q_proj is merged.again
    assert type(merged.again) is nn.Linear
    torch.testing.assert_close(merged(tokens), y, rtol=0, atol=1e-12)


def numerical(model, tokens, delta, step=1e-6):
    grad = torch.zeros_like(delta)
    for i in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                delta[i, 0] += sign * step
                values.append(model(tokens).square().sum())
                delta[i, 0] -= sign * step
        grad[i, 0] = (values[0] - values[1]) / (2 * step)
    return grad


# Seeds


def chosen(model):
    return {name: layer.paca_indices["default"].tolist() for name, layer in layers(model).items()}


def test_a_seed_fixes_the_connections_and_none_draws_anew():
    first, again = chosen(stack(random_seed=3)), chosen(stack(random_seed=3))
    assert first == again
    assert first != chosen(stack(random_seed=4))
    assert len({tuple(indices) for indices in first.values()}) > 1  # layers of one shape differ
    assert all(indices == sorted(set(indices)) for indices in first.values())
    torch.manual_seed(1)
    one = chosen(stack())
    assert one != chosen(stack())
    torch.manual_seed(1)
    assert one == chosen(stack())


def test_what_is_drawn_after_a_seed_does_not_depend_on_who_drew_it():
    shared = PacaConfig(r=2, target_modules=["q_proj"])
    after = []
    for _ in range(2):
        torch.manual_seed(1)
        get_peft_model(Stack(), shared)
        after.append(torch.rand(1))
    assert torch.equal(*after)
    assert shared.random_seed is not None


def test_a_seed_does_not_depend_on_which_other_layers_are_adapted():
    everywhere, few = chosen(stack(random_seed=3)), chosen(stack(random_seed=3, target_modules=["v_proj"]))
    assert few == {name: everywhere[name] for name in few}
    torch.manual_seed(1)
    stack(random_seed=3)
    after = torch.rand(1)
    torch.manual_seed(1)
    Stack()
    assert torch.equal(after, torch.rand(1))  # the global generator is left alone


# What is trained


BIASES = {
    "none": set(),
    "paca_only": {"one.base_layer.bias", "two.base_layer.bias"},
    "all": {"one.base_layer.bias", "two.base_layer.bias", "head.bias"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", BIASES)
def test_biases_are_trained_saved_and_loaded(bias, kind, tmp_path):
    plain, model = adapted(kind, bias=bias)
    names = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    assert names == BIASES[bias] | {"one.paca_delta.default", "two.paca_delta.default"}
    train(model)
    assert torch.equal(layers(model)["one"].base_layer.bias, plain.one.bias) is (bias == "none")
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(fresh(inputs()), model(inputs()), rtol=0, atol=1e-12)


def test_modules_to_save(tmp_path):
    plain, model = adapted(modules_to_save=["head"])
    assert sum(p.numel() for p in trained(model)) == 3 * 12 + 3 * 10 + 44
    train(model)
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(fresh(inputs()), model(inputs()), rtol=0, atol=1e-12)
    with model.disable_adapter():
        torch.testing.assert_close(model(inputs()), plain(inputs()), rtol=0, atol=1e-12)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(inputs()), fresh(inputs()), rtol=0, atol=1e-12)
    assert type(merged.head) is nn.Linear


# Reports


def test_names_that_match_nothing_are_reported_though_others_match():
    with pytest.warns(UserWarning, match="matches no module") as caught:
        stack(target_modules=["q_proj", "v_porj", "gate"])
    assert [str(warning.message) for warning in caught] == [
        "target_modules: 'gate' matches no module.\n'v_porj' matches no module; did you mean 'v_proj' or 'q_proj'? "
        "The others match 3 layers."
    ]


def test_names_that_all_match_are_not_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = stack()
        model.add_adapter("second", PacaConfig(r=2, target_modules=["q_proj"]))
    found = layers(model)
    assert [name for name, layer in found.items() if "second" in layer.r] == [n for n in found if n.endswith("q_proj")]
    assert {name.rsplit(".")[-1] for name, layer in found.items() if "default" in layer.r} == {"q_proj", "v_proj"}


def test_the_share_of_adapted_weights_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="paca"):
        adapted(r=3)
    assert [record.getMessage() for record in caplog.records] == [
        "PaCA adapter 'default': 2 layers, 66 of 306 weights (21.57 %)"
    ]


def test_fan_in_fan_out_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match=r"fan_in_fan_out=True is ignored: torch.nn.Linear stores its weight as"):
        adapted(fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted("Conv1D", fan_in_fan_out=True)


# Refusals


def tied(model):
    model.lm_head.weight = model.embed.weight


def sharing_memory(model):
    model.lm_head.weight = nn.Parameter(model.embed.weight.data)


def nothing(model):
    pass


def with_attention(model):
    model.attention = nn.MultiheadAttention(8, 2)


REFUSALS = {
    "nothing matches": (
        nothing,
        {"target_modules": ["qproj", "nonsense"]},
        r"No modules were targeted for adaptation\. "
        r"Target modules \['nonsense', 'qproj'\] not found in the base model:\n'nonsense' matches no module\.\n"
        r"'qproj' matches no module; did you mean 'q_proj' or 'v_proj'\?\n"
        r"Layers of this model that can be adapted: embed, lm_head, q_proj, v_proj\..*"
        r"pass target_modules='all-linear'",
    ),
    "no such expression": (nothing, {"target_modules": r".*\.k_proj"}, r"Target modules .*k_proj not found"),
    "all excluded": (nothing, {"exclude_modules": r".*"}, "All modules were excluded"),
    "no such block": (nothing, {"layers_to_transform": [7]}, r"not found.*'layers_to_transform': \[7\]"),
    "none given": (nothing, {"target_modules": None}, "Please specify `target_modules`.*Pass a list of layer names"),
    "rank too large": (
        nothing,
        {"r": 9},
        r"r=9 does not fit layers\.0\.q_proj, which has 8 connections \(weight \(8, 8\)\): pass r=8 or less, or "
        r"rank_pattern=\{'layers\.0\.q_proj'",
    ),
    "pattern's rank too large": (
        nothing,
        {"rank_pattern": {"layers.2.v_proj": 20}},
        r"r=20 does not fit layers\.2\.v_proj",
    ),
    "a norm without a weight": (
        nothing,
        {"target_modules": ["q_proj", "norm"]},
        r"Target module layers\.0\.norm \(LayerNorm\) is not supported\. PaCA adapts "
        r"quantized linear layers, torch\.nn\.Linear divided by tensor parallelism, torch\.nn\.Linear, transformers\."
        r"pytorch_utils\.Conv1D, .*exclude_modules",
    ),
    "a tied weight": (
        tied,
        {"target_modules": ["lm_head", "q_proj"]},
        r"lm_head\.weight is tied to embed\.weight: writing columns into it would change both\. Leave it out "
        r"\(exclude_modules=\['lm_head'\]\), or untie it first: .*tie_word_embeddings=False",
    ),
    "a weight in another's memory": (
        sharing_memory,
        {"target_modules": ["lm_head"]},
        r"lm_head\.weight is tied to embed\.weight",
    ),
    "attention's projection": (
        with_attention,
        {"target_modules": ["out_proj"]},
        r"attention\.out_proj is part of torch\.nn\.MultiheadAttention.*Name the whole module, 'attention', .*"
        r"exclude_modules=\['attention\.out_proj'\]",
    ),
}


def test_naming_nothing_raises_pefts_own_error_for_a_second_adapter_too():
    with pytest.raises(NoMatchingPeftModuleError, match=r"No modules were targeted.*not found in the base model"):
        get_peft_model(Stack(), PacaConfig(target_modules=["nonsense"]))
    model = get_peft_model(Stack(), PacaConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(NoMatchingPeftModuleError, match=r"No modules were targeted.*not found in the base model"):
        model.add_adapter("other", PacaConfig(target_modules=["nonsense"], modules_to_save=["lm_head"]))


@pytest.mark.parametrize(("prepare", "options", "message"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("way", [get_peft_model, lambda model, config: inject_adapter_in_model(config, model)])
def test_a_refused_call_leaves_the_model_as_it_was(prepare, options, message, way):
    model = Stack()
    prepare(model)
    twin = copy.deepcopy(model)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        way(model, PacaConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **options}))
    assert_same_as(model, twin)
    assert get_peft_model(model, PacaConfig(r=2, target_modules=["q_proj"]))(torch.arange(4)[None]).shape == (1, 4, 16)


@pytest.mark.parametrize(("prepare", "options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_refused_second_adapter_leaves_the_first_alone(prepare, options, message):
    model = Stack()
    prepare(model)
    model = get_peft_model(model, PacaConfig(r=2, target_modules=["q_proj"], init_weights=False))
    before, state = model(torch.arange(4)[None]), copy.deepcopy(model.state_dict())
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.add_adapter("second", PacaConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **options}))
    assert list(model.peft_config) == ["default"]
    assert [name for name, _ in model.named_modules()] == modules
    assert torch.equal(model(torch.arange(4)[None]), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"base_model.model.layers.{i}.q_proj.paca_delta.default" for i in range(3)
    ]


def test_every_problem_is_told_at_once():
    model = Stack()
    tied(model)
    with pytest.raises(PacaError) as error:
        get_peft_model(model, PacaConfig(r=9, target_modules=["q_proj", "norm", "lm_head"]))
    text = str(error.value)
    assert text.startswith("PaCA cannot adapt this model as asked:\n")
    assert text.count("r=9 does not fit") == 4
    assert text.count("is not supported") == 3
    assert text.count("is tied to") == 1


def test_a_tied_weight_may_stay_if_it_is_left_out():
    model = Stack()
    tied(model)
    model = get_peft_model(model, PacaConfig(r=2, target_modules="all-linear", exclude_modules=["lm_head"]))
    assert model.get_base_model().lm_head.weight is model.get_base_model().embed.weight


def test_injection_by_a_state_dict_is_checked_too():
    """These checks were left out, and a rank that did not fit left some layers adapted and some not."""
    model = Stack()
    model.layers[2].q_proj = nn.Linear(4, 8)
    twin = copy.deepcopy(model)
    state = {f"layers.{i}.q_proj.paca_delta": None for i in range(3)}
    with pytest.raises(PacaError, match=r"r=6 does not fit layers\.2\.q_proj, which has 4 connections"):
        inject_adapter_in_model(PacaConfig(r=6, target_modules=["q_proj"]), model, state_dict=state)
    assert_same_as(model, twin)


CONFIGURATIONS = {
    "r": ({"r": 0}, "`r` should be a positive integer value but the value passed is 0"),
    "r as text": ({"r": "8"}, "the value passed is '8'"),
    "alpha": ({"paca_alpha": 0}, "paca_alpha=0 is not a finite number other than 0; leave it out to use r"),
    "rank_pattern": ({"rank_pattern": {"q": -1}}, r"rank_pattern\['q'\]=-1 is not a positive integer"),
    "alpha_pattern": ({"alpha_pattern": {"q": float("nan")}}, r"alpha_pattern\['q'\]=nan is not a finite number"),
    "bias": ({"bias": "lora_only"}, "bias='lora_only' is unknown; pass one of 'none', 'all', 'paca_only'"),
    "seed": ({"random_seed": -1}, "random_seed=-1 is not an integer of 0 or more"),
    "layers": (
        {"target_modules": "q.*", "layers_to_transform": [1]},
        "`layers_to_transform` cannot be used when `target_modules` is a str",
    ),
    "pattern": ({"layers_pattern": "h"}, "When `layers_pattern` is specified, `layers_to_transform` must also"),
    "several": ({"r": 0, "bias": "some"}, "value passed is 0.*bias='some' is unknown"),
}


@pytest.mark.parametrize(("options", "message"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_nonsense_is_refused_at_the_user_s_own_line(options, message):
    with pytest.raises(PacaError, match=f"PacaConfig: .*{message}"):
        PacaConfig(**options)


def test_the_call_of_the_paper_s_authors():
    from peft import TaskType

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    made = PacaConfig(r=8, paca_alpha=16, target_modules=names, bias="none", task_type=TaskType.CAUSAL_LM)
    assert (made.r, made.paca_alpha, made.target_modules) == (8, 16, set(names))
    assert PacaConfig(r=5).paca_alpha == 5


def test_unloading_leaves_nothing_behind():
    plain, model = adapted()
    base = model.unload()
    assert not any(isinstance(module, PacaLayer) for module in base.modules())
    assert not hasattr(base, "peft_config")
    again = get_peft_model(base, config(random_seed=2))
    again(inputs())
    with again.disable_adapter():
        assert_pretrained(plain, again)
        assert torch.equal(again(inputs()), plain(inputs()))


def test_a_model_is_a_toy_again_after_a_refused_and_an_accepted_call():
    plain = Toy()
    twin = copy.deepcopy(plain)
    with pytest.raises(PacaError):
        get_peft_model(plain, config(r=11))
    base = get_peft_model(plain, config()).unload()
    assert [type(module) for module in base.modules()] == [type(module) for module in twin.modules()]
