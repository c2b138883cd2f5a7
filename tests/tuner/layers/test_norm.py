"""Norms, whose whole weight is trained."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.toys import tiny_llama_config
from timm.layers import BatchNormAct2d, LayerNorm2d
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import paca
from paca import PacaConfig, PacaError
from paca.tuner.layers.norm import is_norm

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
NORMS = {
    "nn.LayerNorm": lambda: nn.LayerNorm(8),
    "nn.LayerNorm without a bias": lambda: nn.LayerNorm(8, bias=False),
    "nn.RMSNorm": lambda: nn.RMSNorm(8),
    "nn.GroupNorm": lambda: nn.GroupNorm(1, 5),
    "LlamaRMSNorm": lambda: LlamaRMSNorm(8),
    "Qwen3NextRMSNorm": lambda: Qwen3NextRMSNorm(8),  # multiplies with 1 + w
    "T5LayerNorm": lambda: T5LayerNorm(8),
}
norms = pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)


def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config())


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm, self.head = nn.Linear(8, 8), norm, nn.Linear(8, 3)
        nn.init.normal_(self.norm.weight, 1, 0.3)

    def forward(self, x):
        return self.head(self.norm(self.linear(x)))


def config(**options):
    return PacaConfig(**{"r": 4, "target_modules": ["linear"], "train_norms": True, "random_seed": 0, **options})


@norms
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_gradient_is_that_of_full_fine_tuning(make, dtype):
    plain = Net(make()).to(dtype)
    model = get_peft_model(copy.deepcopy(plain), config(init_weights=False), autocast_adapter_dtype=False)
    layer = model.get_base_model().norm
    with torch.no_grad():
        for part in ("linear", "norm"):
            adapted = model.get_base_model().get_submodule(part)
            weight = plain.get_submodule(part).weight
            weight.add_(adapted.get_delta_weight("default"))
    outputs = [net(X.to(dtype)) for net in (model, plain)]
    torch.testing.assert_close(*outputs)
    for y in outputs:
        y.square().sum().backward()
    torch.testing.assert_close(layer.paca_delta["default"].grad[0], plain.norm.weight.grad)
    assert layer.base_layer.weight.grad is None


@norms
def test_a_norm_of_16_bits_is_trained_in_float32(make):
    model = get_peft_model(Net(make()).bfloat16(), config())
    layer = model.get_base_model().norm
    pretrained = layer.base_layer.weight.clone()
    delta = layer.paca_delta["default"]
    assert delta.dtype == torch.float32
    optimizer = torch.optim.SGD([delta], lr=1e-4)
    for _ in range(3):
        y = model(X.bfloat16())
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0 < delta.abs().max() < 2**-6, "less than a weight near 1 can tell of"
    assert torch.equal(layer.base_layer.weight, pretrained)
    model.merge_adapter()
    wanted = (pretrained.float() + delta[0].detach()).bfloat16()
    assert torch.equal(layer.base_layer.weight, wanted)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, pretrained)


@pytest.mark.parametrize(
    ("module", "is_one"),
    [
        *((make(), True) for make in NORMS.values()),
        (LayerNorm2d(8), True),
        (nn.BatchNorm1d(8), False),
        (BatchNormAct2d(8), False),
        (nn.InstanceNorm1d(8, affine=True), False),
        (nn.LayerNorm(8, elementwise_affine=False), False),
        (nn.LayerNorm((4, 8)), False),
        (nn.Linear(8, 8), False),
        (nn.Module(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_a_norm(module, is_one):
    assert is_norm(module) == is_one


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"target_modules": "all-linear"}, lambda name: True),
        ({"target_modules": ["q_proj"]}, lambda name: True),
        ({"target_modules": r".*\.q_proj"}, lambda name: True),
        ({"target_modules": ["q_proj"], "exclude_modules": ["input_layernorm"]}, lambda name: "input" not in name),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, lambda name: ".1." in name),
        ({"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}, lambda name: name != "model.norm"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"norm": 3}, "alpha_pattern": {}}, lambda name: True),
        ({"target_modules": "all-linear", "selection": "weight", "aligned": True}, lambda name: True),
        ({"target_modules": "all-linear", "run_length": 4}, lambda name: True),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_norms_are_added_to_the_targets(options, kept):
    plain = tiny_llama()
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=4, train_norms=True, random_seed=0, **options))
    trained = {name for name, layer in model.base_model.adapter_layers("default").items() if layer.trained_whole}
    assert trained == {name for name, module in plain.named_modules() if is_norm(module) and kept(name)}
    assert len(trained) > 1
    assert all(layer.r["default"] == 4 for layer in model.base_model.choosable_layers("default").values())
    assert not model.peft_config["default"].train_norms, "the file names the norms"


def test_norms_can_be_named_as_targets_too():
    model = get_peft_model(tiny_llama(), PacaConfig(r=4, target_modules=["q_proj", "input_layernorm"], random_seed=0))
    found = model.base_model.adapter_layers("default")
    assert sorted({name.rpartition(".")[2] for name in found}) == ["input_layernorm", "q_proj"]


def test_they_are_scaled_as_the_other_layers_are():
    model = get_peft_model(tiny_llama(), PacaConfig(r=4, paca_alpha=6, target_modules=["q_proj"], train_norms=True))
    assert {layer.scaling["default"] for layer in model.base_model.adapter_layers("default").values()} == {1.5}


def test_biases_of_norms_are_trained_with_those_of_the_other_layers():
    model = get_peft_model(Net(nn.LayerNorm(8)), config(bias="paca_only"))
    model(X).square().sum().backward()
    found = {name.rpartition("model.")[2]: value for name, value in model.named_parameters() if value.requires_grad}
    assert {name for name in found if name.endswith("bias")} == {"linear.base_layer.bias", "norm.base_layer.bias"}
    assert all(value.grad.any() for value in found.values())


def test_a_budget_counts_them():
    plain = tiny_llama()
    values = sum(module.weight.numel() for module in plain.modules() if is_norm(module))
    one = sum(module.weight.shape[0] for name, module in plain.named_modules() if name.endswith("down_proj"))
    budget = values + 3 * one
    options = {"target_modules": ["down_proj"], "train_norms": True}
    model = get_peft_model(plain, PacaConfig(budget=budget, random_seed=0, **options))
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == budget


@pytest.mark.parametrize("save", [True, False])
def test_saved_and_loaded(save, tmp_path):
    plain, ids = tiny_llama().eval(), torch.arange(8)[None]
    options = {"target_modules": "all-linear", "train_norms": True, "init_weights": False, "random_seed": 0}
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=4, **options)).eval()
    with torch.no_grad():
        wanted, pretrained = model(ids).logits, plain(ids).logits
    assert not torch.allclose(wanted, pretrained)
    if save:
        model.save_pretrained(tmp_path)
        model = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, pretrained)
        assert torch.equal(model.merge_and_unload()(ids).logits, wanted)


def test_connections_that_move_and_those_chosen_by_data_leave_them_alone():
    ids = torch.arange(8)[None]
    options = {"target_modules": ["q_proj", "down_proj"], "train_norms": True, "random_seed": 0}
    moving = get_peft_model(tiny_llama(), PacaConfig(r=4, reselect_every=2, **options))
    chosen = paca.reselect(moving)
    assert {name.rpartition(".")[2] for name in chosen} == {"q_proj", "down_proj"}
    seen = get_peft_model(tiny_llama(), PacaConfig(r=4, selection="gradient", selection_batches=1, **options))
    chosen = paca.select_connections(seen, [{"input_ids": ids, "labels": ids}], progress=False)
    assert {name.rpartition(".")[2] for name in chosen} == {"q_proj", "down_proj"}
    seen(input_ids=ids, labels=ids).loss.backward()
    whole = [layer for layer in seen.base_model.adapter_layers("default").values() if layer.trained_whole]
    assert whole
    assert all(layer.paca_delta["default"].grad.any() for layer in whole)


def test_lean_norms_keep_as_little_and_train_alike():
    ids = torch.arange(16)[None] % 8
    grads, kept = [], []
    for lean in (False, True):
        options = {"target_modules": "all-linear", "train_norms": True, "random_seed": 0}
        model = get_peft_model(tiny_llama(), PacaConfig(r=4, **options)).train()
        if lean:
            paca.lean(model)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        kept.append(sum(sizes))
        layers = model.base_model.adapter_layers("default").values()
        grads.append([layer.paca_delta["default"].grad for layer in layers])
    assert kept[1] < kept[0]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_with_adapters_of_their_own():
    plain = Net(LlamaRMSNorm(8))
    model = get_peft_model(copy.deepcopy(plain), config(init_weights=False)).eval()
    model.add_adapter("other", config(init_weights=False))
    x = torch.cat([X, X[:1]])
    with torch.no_grad():
        mixed = model(x, adapter_names=["default", "other", "__base__"])
        rows = []
        for name, row in (("default", 0), ("other", 1)):
            model.set_adapter(name)
            rows.append(model(x[row : row + 1]))
        rows.append(plain(x[2:]))
    torch.testing.assert_close(mixed, torch.cat(rows))


def test_compiled():
    plain = Net(LlamaRMSNorm(8))
    model = get_peft_model(copy.deepcopy(plain), config(init_weights=False))
    y = model(X)
    y.sum().backward()
    grad = model.get_base_model().norm.paca_delta["default"].grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    again = compiled(X)
    torch.testing.assert_close(again, y)
    again.sum().backward()
    torch.testing.assert_close(model.get_base_model().norm.paca_delta["default"].grad, grad)


@pytest.mark.parametrize("train", [True, False])
def test_within_pytorchs_own_transformer_layer(train):
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    options = {"target_modules": ["linear1"], "train_norms": True, "init_weights": False, "random_seed": 0}
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(r=4, **options)).train(train)
    with torch.set_grad_enabled(train):
        y = model(X)
    merged = model.merge_and_unload()
    torch.testing.assert_close(y, merged(X))
    assert not torch.allclose(y, plain.train(train)(X))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Linear(8, 8)), "that could be trained. Leave it out."),
        (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), "its BatchNorm1d normalise by a batch, or have none."),
    ],
)
def test_a_model_without_norms_is_refused(net, said):
    with pytest.raises(PacaError, match=r"train_norms=True: the model has no norm") as error:
        get_peft_model(net, PacaConfig(r=4, target_modules=["0"], train_norms=True))
    assert said in str(error.value)
