"""Today's architectures: each is planned as the real step is, or one line says why not."""

import json

import pytest
import torch
import transformers
from tests.paths import SHARED

from paca.errors import PacaError
from paca.workbench.cli.main import main
from paca.workbench.planning.families import find_family
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner, build, measure

pytestmark = pytest.mark.road("plans")

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
}
EXPERTS = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
BART = {
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 96))},
    "d_model": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
}
JETMOE = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 1, "num_local_experts": 4, "kv_channels": 16}
MAMBA2 = {"num_heads": 4, "head_dim": 32, "n_groups": 1, "state_size": 16, "chunk_size": 32}


def vision_language():
    """LLaVA over a Llama: its vision tower is never called for text."""
    text = transformers.LlamaConfig(**SIZES)
    vision = transformers.CLIPVisionConfig(**EYES, image_size=32, patch_size=16)
    return transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=299)


PLANNED = {
    "heads of values differ from those of queries": lambda: transformers.DeepseekV3Config(**LATENT, **EXPERTS),
    "and there are fewer of them": lambda: transformers.MiniCPM3Config(**LATENT),
    "vision and language": vision_language,
    "encoder-decoder with position biases": lambda: transformers.T5Config(**T5),
    "encoder-decoder": lambda: transformers.BartConfig(**BART),
    "experts": lambda: transformers.Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, head_dim=16),
    "attention in classes of its own": lambda: transformers.FalconConfig(**SIZES),
    "attention that knows no kernels": lambda: transformers.GPTJConfig(
        vocab_size=300, n_embd=64, n_layer=2, n_head=4, rotary_dim=8
    ),
    "state space in chunks": lambda: transformers.Mamba2Config(
        **MAMBA2, vocab_size=300, hidden_size=64, num_hidden_layers=2
    ),
    "delta rule in chunks": lambda: transformers.Qwen3NextConfig(
        **SIZES, **DELTA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
}


def setting(tokens=64, dtype=torch.float32, **changes):
    return TrainingSetting("paca", 4, 2, tokens, dtype, **changes)


def dtype_of(config):
    """A precision that the model's layers take: grouped products of experts are for 16 bits."""
    return torch.bfloat16 if hasattr(config, "num_experts_per_tok") else torch.float32


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_is_what_the_real_step_takes(name):
    planner = Planner(PLANNED[name]())
    wanted = setting(attention="sdpa", dtype=dtype_of(PLANNED[name]()))
    planned = planner.step(wanted)
    real = measure(build(PLANNED[name](), wanted, "cpu"), wanted, warm_up=True)
    assert planned.peak.total == pytest.approx(real.peak.total, rel=0.03)
    assert (planned.trained, planned.uncalled) == (real.trained, real.uncalled)


@pytest.mark.parametrize("name", list(PLANNED)[:2])
def test_latent_attention_keeps_no_scores_on_a_gpu(name):
    planner = Planner(PLANNED[name]())
    dtype = dtype_of(PLANNED[name]())
    kept = [planner.step(setting(tokens, dtype)).peak.by_category["activations"] for tokens in (512, 1024)]
    assert 1.9 < kept[1] / kept[0] < 2.1
    scores = planner.step(setting(1024, dtype, attention="sdpa")).peak.by_category["activations"]
    assert scores > kept[1] + 2 * 4 * 1024**2 * dtype.itemsize  # of one layer


def test_what_is_never_called_has_no_optimizer_states():
    step = Planner(vision_language()).step(setting())
    assert step.uncalled
    assert all("vision_tower" in name or "projector" in name for name in step.uncalled)
    assert step.peak.by_category["optimizer"] < 3 * step.trained * 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.WhisperConfig(), "type 'whisper' can't be planned: what can are"),
        (transformers.MambaConfig(num_hidden_layers=1), "without the mamba_ssm kernels, which need a GPU"),
        (transformers.JambaConfig(num_hidden_layers=2, attn_layer_offset=1), "layers run token by token"),
        (transformers.RwkvConfig(num_hidden_layers=1), "layers run token by token"),
        (transformers.JetMoeConfig(**JETMOE), "of type 'jetmoe' can't be simulated: DataDependentOutputException"),
    ],
)
def test_one_line_says_why_not(config, message, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--methods", "paca"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_a_configuration_that_can_t_be_read_is_one_line(tmp_path, capsys):
    content = transformers.LlamaConfig(**SIZES).to_dict() | {"head_dim": 15}  # rotations need pairs
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert main(["plan", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"The configuration in {str(tmp_path)!r} can't be read: " in said
    assert said.count("\n") == 1


def test_a_method_that_can_t_be_planned_leaves_the_others(tmp_path, capsys):
    PLANNED["heads of values differ from those of queries"]().save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--methods", "paca,dora", "--seq", "32", "--json"]) == 0
    said = capsys.readouterr()
    assert [row["method"] for row in json.loads(said.out)["methods"]] == ["paca"]
    assert "A step of 'dora' on a model of type 'deepseek_v3' can't be simulated" in said.err


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("state space in chunks", "the mamba_ssm kernels keep less"),
        ("delta rule in chunks", "the fla kernels keep less"),
        ("attention in classes of its own", "it takes no attention but transformers' own"),
        ("encoder-decoder", "encoder and decoder take as many tokens each"),
    ],
)
def test_what_was_counted_in_another_way_is_said(name, note, tmp_path, capsys):
    PLANNED[name]().save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--methods", "paca", "--seq", "32"]) == 0
    said = capsys.readouterr()
    assert note in said.out + said.err


def test_what_a_plan_leaves_out_is_said(tmp_path, capsys):
    vision_language().save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--methods", "paca", "--seq", "32"]) == 0
    said = capsys.readouterr()
    assert "planned for text alone" in said.err
    assert "layers are never called, and not counted as trained: model.multi_modal_projector.linear_1" in said.out
    assert "vision_tower" in said.out


@pytest.mark.skipif(not (SHARED / "cases/road/plan").is_dir(), reason="the cases are not beside the checkout")
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("deepseek_v3", "quantized (fp8), which isn't counted"),
        ("llama_gptq", "quantized (gptq in 4 bits), which isn't counted"),
        ("qwen2vl", "of type 'qwen2_vl' can't be simulated: RuntimeError: split_with_sizes expects"),
    ],
)
def test_configurations_from_the_road(case, message, capsys):
    assert main(["plan", str(SHARED / "cases/road/plan" / case), "--methods", "paca"]) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_is_told_by_its_class_not_by_a_size():
    assert find_family(transformers.ViTConfig()).images
    assert find_family(transformers.ResNetConfig()).images
    assert not find_family(vision_language()).images
    with pytest.raises(PacaError, match="can't be planned"):
        find_family(transformers.ViTMAEConfig())
