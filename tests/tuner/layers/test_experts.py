"""Fused expert weights: the gradients of full fine-tuning at the selected features, whatever multiplies."""

import copy
import logging
import re

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import trained
from torch.func import functional_call

from paca import PacaConfig, PacaError
from paca.profiling import kept_for_backward
from paca.tuner.layers import Experts
from paca.tuner.layers.experts import expert_parameters, router_names

DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "Mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "Qwen3-MoE": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    "GPT-OSS": (transformers.GptOssConfig, transformers.GptOssForCausalLM),  # weights (experts, in, out), and biases
}
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
# In float64, which transformers' grouped GEMM leaves to a fallback only if it is told that there is no kernel.
FLOAT64 = ("eager", "batched_mm", "fallback")
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(autouse=True)
def _fallback(request, monkeypatch):
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("implementation") == "fallback":
        monkeypatch.setattr(transformers.integrations.moe, "_can_use_grouped_mm", lambda *_: False)


def plain_model(name="Mixtral", dtype=torch.float64, implementation="eager"):
    implementation = "grouped_mm" if implementation == "fallback" else implementation
    config, model_class = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config(**DECODER, experts_implementation=implementation)).to(dtype).eval()
    for parameter in expert_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def adapted(plain, **options):
    options = {"r": 5, "target_modules": [], "target_parameters": EXPERTS, "random_seed": 0, **options}
    options = {"init_weights": False, **options}
    return get_peft_model(copy.deepcopy(plain), PacaConfig(**options), autocast_adapter_dtype=False).eval()


def batch():
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "labels": ids}


def experts_layers(model):
    """The adapted layers by the name of their weight in the plain model."""
    names = {id(parameter): name for name, parameter in expert_parameters(model).items()}
    layers = {names[id(m.base_weight)]: m for m in model.modules() if isinstance(m, Experts)}
    return {name.removeprefix("base_model.model."): layer for name, layer in layers.items()}


def full_fine_tuning(plain, model):
    """The loss of the plain model with its expert weights replaced, and these, as leaves."""
    weights = {}
    for name, layer in experts_layers(model).items():
        total = plain.get_parameter(name).detach().clone()
        for adapter in layer.active_adapters:
            total += layer.get_delta_weight(adapter).detach()
        weights[name] = total.requires_grad_()
    return functional_call(plain, weights, kwargs=batch()).loss, weights


def output(model):
    with torch.no_grad():
        return model(**batch()).logits


@pytest.mark.parametrize("implementation", FLOAT64)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_full_fine_tuning_at_the_selected_features(name, implementation):
    plain = plain_model(name, implementation=implementation)
    model = adapted(plain, paca_alpha=10)
    loss = model(**batch()).loss
    resident = {key: layer.base_weight.clone() for key, layer in experts_layers(model).items()}
    loss.backward()
    wanted, weights = full_fine_tuning(plain, model)
    wanted.backward()
    assert torch.allclose(loss, wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(loss, plain(**batch()).loss, rtol=1e-3)
    assert len(weights) == 4
    for key, layer in experts_layers(model).items():
        delta, indices = layer.paca_delta["default"], layer.paca_indices["default"]
        assert delta.shape == (4, layer.out_features, 5)
        restricted = weights[key].grad.index_select(layer.connection_dim, indices)
        restricted = restricted.transpose(1, 2) if layer.connection_dim == 1 else restricted
        assert restricted.abs().max() > 1e-6
        torch.testing.assert_close(delta.grad, 2.0 * restricted, rtol=0, atol=1e-10)
        torch.testing.assert_close(resident[key], weights[key].detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("implementation", FLOAT64)
def test_input_gradient_of_experts_alone(implementation):
    plain = plain_model(implementation=implementation).model.layers[0].mlp.experts
    model = adapted(plain_model(implementation=implementation))
    layer = model.base_model.model.model.layers[0].mlp.experts
    x = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[0, 1], [1, 3], [3, 0], [0, 1], [1, 0], [3, 1], [0, 3]])  # nothing goes to expert 2
    weights = torch.rand(7, 2, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(layer(x, chosen, weights).square().sum(), (x, weights, *trained(layer)))
    for inner in (layer, layer.base_layer):
        plain._parameters[inner.weight_name].data += inner.get_delta_weight("default").detach()
    expected = torch.autograd.grad(plain(x, chosen, weights).square().sum(), (x, weights))
    torch.testing.assert_close(found[:2], expected, rtol=0, atol=1e-10)
    assert all((gradient[2] == 0).all() and gradient.any() for gradient in found[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lower_precision(implementation, dtype):
    plain = plain_model(dtype=dtype, implementation=implementation)
    model = adapted(plain)
    model(**batch()).loss.backward()
    wanted, weights = full_fine_tuning(plain, model)
    wanted.backward()
    for key, layer in experts_layers(model).items():
        found = layer.paca_delta["default"].grad
        restricted = weights[key].grad.index_select(2, layer.paca_indices["default"])
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        assert found.dtype == dtype
        assert (found - restricted).norm() <= tolerance * restricted.norm()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast(implementation):
    plain = plain_model(dtype=torch.float32, implementation=implementation)
    model = adapted(plain)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
        wanted, weights = full_fine_tuning(plain, model)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-2, atol=0)
    for key, layer in experts_layers(model).items():
        restricted = weights[key].grad.index_select(2, layer.paca_indices["default"])
        assert (layer.paca_delta["default"].grad - restricted).norm() <= 0.1 * restricted.norm()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_train_save_load_merge(name, implementation, tmp_path):
    plain = plain_model(name, torch.float32, implementation)
    model = adapted(plain, init_weights=True)
    assert torch.equal(output(model), output(plain))
    optimizer = torch.optim.AdamW(trained(model), lr=0.05)
    losses = []
    for _ in range(3):
        loss = model.train()(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0] - 0.01
    wanted = output(model.eval())
    assert not torch.allclose(wanted, output(plain), atol=1e-2)

    model.save_pretrained(tmp_path)
    state = model.base_model.model.state_dict()
    for key, layer in experts_layers(model).items():
        pretrained = plain.get_parameter(key)
        module, weight = key.rsplit(".", 1)
        assert torch.equal(
            next(v for k, v in state.items() if k.startswith(module) and k.endswith(weight)), pretrained
        )
        assert not layer.merged_adapters
    with model.disable_adapter():
        assert torch.equal(output(model), output(plain))
        for key, layer in experts_layers(model).items():
            assert torch.equal(layer.base_weight, plain.get_parameter(key))

    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    torch.testing.assert_close(output(fresh), wanted)
    fresh.merge_adapter()
    torch.testing.assert_close(output(fresh), wanted)
    fresh.unmerge_adapter()
    assert all(torch.equal(parameter, plain.get_parameter(key)) for key, parameter in by_plain_name(fresh).items())
    merged = fresh.merge_and_unload(safe_merge=True)
    assert type(merged) is type(plain)
    torch.testing.assert_close(output(merged), wanted)
    again = plain_model(name, torch.float32, implementation)
    again.load_state_dict(merged.state_dict())
    torch.testing.assert_close(output(again), wanted)
    unloaded = model.unload()
    assert torch.equal(output(unloaded), output(plain))


def by_plain_name(model):
    return {name.removeprefix("base_model.model."): value for name, value in expert_parameters(model).items()}


def test_several_adapters_overlap_and_one_is_deleted():
    plain = plain_model()
    model = adapted(plain)
    model.add_adapter("other", PacaConfig(r=7, target_modules=[], target_parameters=EXPERTS, init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    wanted, _ = full_fine_tuning(plain, model)
    torch.testing.assert_close(model(**batch()).loss, wanted, rtol=0, atol=1e-12)
    model.base_model.set_adapter("other")
    wanted, _ = full_fine_tuning(plain, model)
    torch.testing.assert_close(model(**batch()).loss, wanted, rtol=0, atol=1e-12)
    model.delete_adapter("other")
    assert all(torch.equal(parameter, plain.get_parameter(key)) for key, parameter in by_plain_name(model).items())


def test_copies_hold_pretrained_weights_and_the_adapter():
    plain = plain_model()
    model = adapted(plain)
    wanted = output(model)
    twin = copy.deepcopy(model)
    assert all(torch.equal(parameter, plain.get_parameter(key)) for key, parameter in by_plain_name(twin).items())
    assert torch.equal(output(twin), wanted)
    assert torch.equal(output(model), wanted)


def test_backward_finds_its_columns_again():
    plain = plain_model()
    model = adapted(plain)
    loss = model(**batch()).loss
    with model.disable_adapter():
        model(**batch())
    loss.backward()
    wanted, weights = full_fine_tuning(plain, model)
    wanted.backward()
    for key, layer in experts_layers(model).items():
        restricted = weights[key].grad.index_select(2, layer.paca_indices["default"])
        torch.testing.assert_close(layer.paca_delta["default"].grad, restricted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    gradients = []
    for checkpoint in (False, True):
        model = adapted(plain_model()).train()
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**batch()).loss.backward()
        gradients.append([parameter.grad for parameter in trained(model)])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_only_the_selected_features_are_kept(implementation):
    kept = []
    for rank in (1, 6):
        model = adapted(plain_model(dtype=torch.float32, implementation=implementation), r=rank)
        model(**batch())
        kept.append(kept_for_backward(lambda model=model: model(**batch()).loss))
    rows, weights, float32 = 18 * DECODER["num_experts_per_tok"], 4, 4
    more = rows * weights * 5 * float32
    assert more <= kept[1] - kept[0] <= 1.1 * more


def test_gathered_weights_are_not_kept():
    plain = plain_model(dtype=torch.float32, implementation="batched_mm")
    model = adapted(plain)
    model(**batch())
    gathered = 18 * 2 * plain.model.layers[0].mlp.experts.down_proj[0].nbytes
    assert (
        kept_for_backward(lambda: model(**batch()).loss)
        < kept_for_backward(
            lambda: plain.requires_grad_(False)(inputs_embeds=torch.randn(2, 9, 32).requires_grad_()).logits
        )
        - gathered
    )


def test_all_linear_tells_of_experts_and_leaves_the_router():
    plain = transformers.HunYuanMoEV1ForCausalLM(transformers.HunYuanMoEV1Config(**DECODER, moe_topk=[2, 2]))
    assert router_names(plain) == {f"model.layers.{block}.mlp.gate.wg" for block in (0, 1)}
    names = r"\['mlp\.experts\.gate_up_proj', 'mlp\.experts\.down_proj'\]"
    with pytest.warns(
        UserWarning, match=rf"(?s)4 fused expert weights .* not adapted.*{names}.*Routers are left alone"
    ):
        model = get_peft_model(plain, PacaConfig(target_modules="all-linear", r=2))
    assert not experts_layers(model)
    assert not any("gate.wg" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_all_linear_tells_of_experts_that_cannot_be_adapted():
    """Their routers are left alone as well: Llama 4's return more than a tensor, and an update couldn't be added."""
    config = transformers.Llama4TextConfig(**DECODER, intermediate_size_mlp=32)
    names = r"feed_forward\.experts\.gate_up_proj, feed_forward\.experts\.down_proj"
    with pytest.warns(
        UserWarning, match=rf"4 weights are left out .*{names}.*modules_to_save.*Routers are left alone"
    ):
        model = get_peft_model(transformers.Llama4ForCausalLM(config), PacaConfig(target_modules="all-linear", r=2))
    model(**batch()).loss.backward()
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if "down_proj.paca_delta" in name)


def test_a_layer_that_returns_more_than_a_tensor_is_refused():
    config = transformers.Llama4TextConfig(**DECODER, intermediate_size_mlp=32)
    named = PacaConfig(target_modules=["router"], r=2)
    model = get_peft_model(transformers.Llama4ForCausalLM(config), named)
    with pytest.raises(PacaError, match=r"Llama4Router returns a tuple from its forward.*pass exclude_modules"):
        model(**batch())
    with model.disable_adapter():
        assert model(**batch()).loss.isfinite()


def test_experts_that_two_blocks_share():
    plain = plain_model()
    plain.model.layers[1].mlp.experts = plain.model.layers[0].mlp.experts
    model = adapted(plain)
    first, second = (block.mlp.experts for block in model.base_model.model.model.layers)
    assert first is second
    loss = model(**batch()).loss
    loss.backward()
    wanted, weights = full_fine_tuning(plain, model)
    wanted.backward()
    assert len(weights) == 2
    for key, layer in experts_layers(model).items():
        restricted = weights[key].grad.index_select(2, layer.paca_indices["default"])
        torch.testing.assert_close(layer.paca_delta["default"].grad, restricted, rtol=0, atol=1e-10)
    merged = model.merge_and_unload()
    assert merged.model.layers[0].mlp.experts is merged.model.layers[1].mlp.experts
    torch.testing.assert_close(merged(**batch()).loss, wanted)


def test_adapter_on_bfloat16_weights_loads_without_a_first_copy(tmp_path):
    plain = plain_model(dtype=torch.bfloat16)
    options = {"r": 4, "target_modules": "all-linear", "target_parameters": EXPERTS, "init_weights": False}
    model = get_peft_model(copy.deepcopy(plain), PacaConfig(**options)).eval()
    model(**batch()).loss.backward()
    assert {parameter.grad.dtype for parameter in trained(model)} == {torch.float32}
    wanted = output(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(output(loaded), wanted)
    with pytest.raises(PacaError, match=r"experts\.base_layer: paca_delta is \(4, 96, 4\) in the file"):
        PeftModel.from_pretrained(plain_model("Qwen3-MoE"), tmp_path)


def test_all_linear_with_experts_says_what_is_adapted(caplog, recwarn):
    with caplog.at_level(logging.INFO, logger="paca"):
        model = adapted(plain_model(), target_modules="all-linear")
    assert "12 layers" in caplog.text  # two blocks of four projections and two expert weights
    assert not [warning for warning in recwarn if "expert" in str(warning.message)]
    assert len(experts_layers(model)) == 4


def test_usual_layers_and_experts_of_a_known_architecture():
    model = adapted(plain_model(), target_modules=None)
    assert len(experts_layers(model)) == 4
    assert model.base_model.model.model.layers[0].self_attn.q_proj.paca_delta


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_parameters": "mlp.experts.down_proj"}, r"is a str; pass a list"),
        ({"target_parameters": ["mlp.experts.down_prj"]}, r"no parameter has that name; did you mean 'down_proj'"),
        ({"target_parameters": ["q_proj.weight"]}, r"no fused expert weight of a known layout\. Those of this model"),
        ({"r": 40}, r"r=40 does not fit model\.layers\.0\.mlp\.experts\.gate_up_proj, which has 32 connections"),
    ],
)
def test_refused_without_a_change(options, message):
    plain = plain_model()
    before = [name for name, _ in plain.named_modules()]
    with pytest.raises(PacaError, match=message):
        get_peft_model(plain, PacaConfig(**{"target_modules": [], "target_parameters": EXPERTS, **options}))
    assert [name for name, _ in plain.named_modules()] == before
    assert not hasattr(plain, "peft_config")


def test_another_adapter_on_other_experts_is_refused():
    model = adapted(plain_model())
    with pytest.raises(PacaError, match="name the same ones"):
        model.add_adapter("other", PacaConfig(target_modules=[], target_parameters=EXPERTS[:1]))
    assert list(model.peft_config) == ["default"]
    assert model(**batch()).loss.isfinite()


def test_mixed_batches_and_untrainable_implementations_are_refused():
    model = adapted(plain_model())
    with pytest.raises(PacaError, match="Run one batch per adapter"):
        model(**batch(), adapter_names=["default", "__base__"])
    model.base_model.model.config._experts_implementation = "sonicmoe"
    with pytest.raises(PacaError, match=r"set_experts_implementation\('grouped_mm'\)"):
        model(**batch())


@pytest.mark.parametrize(
    ("multiply", "operation"),
    [
        (lambda x, weight: torch.einsum("ti,eoi->to", x, weight), "einsum"),
        (lambda x, weight: x @ weight[0:2].sum(0).T, "an index of type slice"),
        (lambda x, weight: x @ weight.transpose(0, 1), "transpose(0, 1)"),
        (lambda x, weight: x @ weight.sum(0).T, ".sum"),
    ],
)
def test_a_forward_that_multiplies_in_another_way_is_refused(multiply, operation, monkeypatch):
    layer = adapted(plain_model()).base_model.model.model.layers[0].mlp.experts
    module = layer.get_base_layer()
    monkeypatch.setattr(type(module), "forward", lambda experts, x, *_: multiply(x, experts.gate_up_proj))
    with pytest.raises(PacaError, match=f"does not know \\({re.escape(operation)}\\)"):
        layer(torch.randn(3, 32, dtype=torch.float64), None, None)
    assert isinstance(module.gate_up_proj, torch.nn.Parameter)
