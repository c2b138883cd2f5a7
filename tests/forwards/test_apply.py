"""`paca.lean` over model families: the same losses and gradients, less kept, and what it leaves alone."""

import copy
import pickle
import warnings

import peft
import pytest
import torch
import torch.nn.functional as F
from tests.toys import TINY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import paca
from paca.profiling import kept_for_backward
from paca.workbench.planning import attention
from paca.workbench.planning.fake import materialize_fake
from paca.workbench.planning.models import find_config

SIZES = {**TINY, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2}
# Of each, which classes become lean. Those whose forwards are others' under another name stand for a hundred more.
FAMILIES = {
    "llama": {"LlamaForCausalLM": 1, "LlamaAttention": 2, "LlamaMLP": 2, "LlamaRMSNorm": 5},
    "mistral": {"MistralForCausalLM": 1, "MistralAttention": 2, "MistralMLP": 2, "MistralRMSNorm": 5},
    "qwen3": {"Qwen3ForCausalLM": 1, "Qwen3Attention": 2, "Qwen3MLP": 2, "Qwen3RMSNorm": 9},
    "gemma": {"GemmaForCausalLM": 1, "GemmaAttention": 2, "GemmaMLP": 2, "GemmaRMSNorm": 5},
    "gemma2": {"Gemma2Attention": 2, "Gemma2MLP": 2, "Gemma2RMSNorm": 9},
    "phi3": {"Phi3ForCausalLM": 1, "Phi3MLP": 2, "Phi3RMSNorm": 5, "Dropout": 4},
    "olmo2": {"Olmo2ForCausalLM": 1, "Olmo2MLP": 2, "Olmo2RMSNorm": 9},
    "cohere": {"CohereMLP": 2, "CohereLayerNorm": 3},
    "gpt2": {"NewGELUActivation": 2, "Dropout": 7},
}
IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))
PROJECTIONS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}


def tiny(family, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config).train().requires_grad_(False)


def quiet_lean(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return paca.lean(model, **options)


def step(model, dtype=None):
    """Loss, and the gradients of all that is trained and of the embedded tokens."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(inputs_embeds=embedded, labels=IDS).loss
    loss.backward()
    return [loss.detach(), embedded.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def both(model, **options):
    """The model and a lean copy of it."""
    lean = copy.deepcopy(model)
    return model, lean, quiet_lean(lean, **options)


def assert_left_alone(change, name, reason):
    """A module that `change` has changed, of the class `name`, computes what it did, and the report says why."""
    model = tiny("llama")
    change(model)
    wanted = step(model)
    report = quiet_lean(model)
    assert reason in report.left[name]
    for mine, theirs in zip(step(model), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    return report


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    model, lean, report = both(tiny(family))
    has_loss = hasattr(F, "linear_cross_entropy")
    expected = FAMILIES[family].items()
    assert report.changed == {name: count for name, count in expected if has_loss or not name.endswith("ForCausalLM")}
    for mine, theirs in zip(step(lean), step(model), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert kept_for_backward(lambda: step_forward(lean)) < kept_for_backward(lambda: step_forward(model))


def step_forward(model):
    return model(inputs_embeds=model.get_input_embeddings()(IDS).detach().requires_grad_(), labels=IDS)


@pytest.mark.parametrize("method", ["paca", "lora"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_methods_train_the_same_with_it_put_on_before_or_after(family, method):
    config = {"paca": paca.PacaConfig, "lora": peft.LoraConfig}[method](
        r=4, target_modules=PROJECTIONS.get(family, "all-linear")
    )
    found = []
    for when in ("never", "before", "after"):
        model = tiny(family)
        if when == "before":
            quiet_lean(model)
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, copy.deepcopy(config))
        if when == "after":
            quiet_lean(adapted)
        found.append(step(adapted))
    plain, *lean = found
    assert len(plain) > 2
    for one in lean:
        for mine, theirs in zip(one, plain, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_modules_of_llama_but_its_norms_are_bit_equal():
    model, lean, _ = both(tiny("llama"), loss=False)
    layer, mine = model.model.layers[0], lean.model.layers[0]
    x = torch.randn(2, 12, 32)
    angles = model.model.rotary_emb(x, torch.arange(12)[None])
    for forward in (lambda one, x: one.mlp(x), lambda one, x: one.self_attn(x, position_embeddings=angles)[0]):
        gradients = []
        for one in (layer, mine):
            inputs = x.clone().requires_grad_()
            y = forward(one, inputs)
            y.square().sum().backward()
            gradients += [y.detach(), inputs.grad]
        assert torch.equal(gradients[0], gradients[2])
        assert torch.equal(gradients[1], gradients[3])


def test_autocast():
    model, lean, _ = both(tiny("llama"))
    plain, half = step(model), step(model, torch.bfloat16)
    assert not torch.equal(plain[0], half[0])
    for mine, theirs in zip(step(lean, torch.bfloat16), half, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    model, lean, _ = both(tiny("llama"))
    wanted = step(model)
    lean.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for mine, theirs in zip(step(lean), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_norms_keep_half():
    model, lean, _ = both(tiny("llama").to(torch.bfloat16), loss=False)
    norm, mine = model.model.norm, lean.model.norm
    x = torch.randn(4, 32, dtype=torch.bfloat16).requires_grad_()
    assert kept_for_backward(lambda: norm(2 * x)) == 4 * 32 * 4 + 4 * 4
    assert kept_for_backward(lambda: mine(2 * x)) == 4 * 32 * 2 + 4 * 4


def test_copies_and_pickles_stay_lean_and_apart():
    _, lean, _ = both(tiny("llama"))
    for again in (copy.deepcopy(lean), pickle.loads(pickle.dumps(lean))):
        assert all(type(one) is type(two) for one, two in zip(again.modules(), lean.modules(), strict=True))
        with torch.no_grad():
            again.model.norm.weight.mul_(2)
        assert not torch.equal(step(again)[0], step(lean)[0])


def test_names_of_classes_stay(tmp_path):
    _, lean, _ = both(tiny("llama"))
    lean.save_pretrained(tmp_path)
    assert type(LlamaForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM
    assert LlamaConfig.from_pretrained(tmp_path).architectures == ["LlamaForCausalLM"]


def test_generation_and_evaluation_are_as_before():
    model, lean, _ = both(tiny("llama").eval())
    with torch.no_grad():
        assert torch.equal(lean(IDS, labels=IDS).logits, model(IDS, labels=IDS).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(lean.generate(IDS, **options), model.generate(IDS, **options))


def test_a_second_call_changes_nothing():
    _, lean, _ = both(tiny("llama"))
    assert quiet_lean(lean).changed == {}


def test_dropout_is_the_same_at_the_same_seed():
    model, lean, _ = both(tiny("gpt2", resid_pdrop=0.3, embd_pdrop=0.3), loss=False)
    for mine, theirs in zip(step(lean), step(model), strict=True):
        assert torch.equal(mine, theirs)
    model.eval()
    assert not torch.equal(step(model)[0], step(lean)[0])


class Unknown(nn.Module):
    """A gated activation of its own making."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.down(self.act(self.gate(x)).mul(self.up(x)))


class StrangeNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x):
        return x / x.abs().amax(-1, keepdim=True) * self.weight


def test_classes_that_are_not_known_are_left_alone_and_named():
    model = nn.Sequential(Unknown(), StrangeNorm(), nn.LayerNorm(32))
    kinds = [type(module) for module in model.modules()]
    with pytest.warns(
        UserWarning, match="left alone: Unknown, .*; StrangeNorm, no lean forward is known for its code"
    ):
        report = paca.lean(model)
    assert set(report.left) == {"Unknown", "StrangeNorm"}
    assert [type(module) for module in model.modules()] == kinds
    assert "left alone: Unknown" in str(report)


def test_a_family_that_is_not_known_is_left_alone_and_named():
    model = tiny("mixtral", num_local_experts=2, num_experts_per_tok=1)
    wanted = step(model)
    report = quiet_lean(model)
    assert "MixtralExperts" in report.left
    assert "MixtralRMSNorm" in report.changed
    for mine, theirs in zip(step(model), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def replaced_forward(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x, plain=mlp.forward: 2 * plain(x)  # as Liger and kernels do to an instance


def hooked_activation(model):
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, args, output: 2 * output)


def strange_activation(model):
    model.model.layers[0].mlp.act_fn = nn.Softmax(-1)


LEFT = {
    replaced_forward: "its forward was replaced already",
    hooked_activation: "hooks watch its act_fn",
    strange_activation: "its act_fn is Softmax",
}


@pytest.mark.parametrize("change", LEFT, ids=lambda change: change.__name__)
def test_modules_that_something_has_changed_are_left_alone_and_named(change):
    assert assert_left_alone(change, "LlamaMLP", LEFT[change]).changed["LlamaMLP"] == 1


def test_a_hook_that_comes_later_is_called():
    _, lean, _ = both(tiny("llama"), loss=False)
    seen = []
    lean.model.layers[1].mlp.act_fn.register_forward_hook(lambda module, args, output: seen.append(output))
    step(lean)
    assert len(seen) == 1


def test_what_is_no_model_is_refused():
    with pytest.raises(paca.PacaError, match=r"got str; pass the model itself"):
        paca.lean("llama")


@pytest.mark.parametrize(
    "method", [None, paca.PacaConfig(r=4, target_modules="all-linear", random_seed=0)], ids=["frozen", "paca"]
)
def test_compiled_as_one_graph(method):
    model, lean, _ = both(tiny("llama"), loss=False)
    if method is not None:
        lean, model = (peft.get_peft_model(one, copy.deepcopy(method)) for one in (lean, model))
    wanted = step(model)
    torch.compiler.reset()
    compiled = torch.compile(lean, backend="aot_eager", fullgraph=method is None)
    for mine, theirs in zip(step(compiled), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_compiled_by_inductor(compiler):
    model, lean, _ = both(tiny("llama", num_hidden_layers=1), loss=False)
    config = paca.PacaConfig(r=4, target_modules="all-linear", random_seed=0)
    lean, model = (peft.get_peft_model(one, copy.deepcopy(config)) for one in (lean, model))
    compiled = torch.compile(lean)
    for mine, theirs in zip(step(compiled), step(model), strict=True):
        torch.testing.assert_close(mine, theirs)


def kept_by_smollm2(change):
    """Bytes that a forward pass of SmolLM2's full shape keeps, on tensors without memory."""
    config = find_config("smollm2-135m")
    attention.register()
    config._attn_implementation, config.use_cache = attention.ATTENTIONS["sdpa"], False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).train().requires_grad_(False)
    model = change(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialize_fake(model)
        embedded = torch.zeros(1, 256, 576, requires_grad=True)
        labels = torch.zeros(1, 256, dtype=torch.long)
        return kept_for_backward(lambda: model(inputs_embeds=embedded, labels=labels).loss)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has no linear_cross_entropy")
def test_paca_lean_keeps_at_most_two_thirds_of_the_plain_floor():
    def paca_lean(model):
        quiet_lean(model)
        return peft.get_peft_model(model, paca.PacaConfig(r=16, target_modules="all-linear"))

    assert kept_by_smollm2(paca_lean) <= 0.66 * kept_by_smollm2(lambda model: model)
