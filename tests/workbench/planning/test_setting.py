"""Every part of a setting counts for what it takes in a real step."""

import pytest
import torch
from tests.toys import TINY, tiny_llama_config
from transformers import GemmaConfig, GPT2Config, LlamaConfig, Phi3Config

from paca.errors import PacaError
from paca.workbench.planning.losses import find_loss
from paca.workbench.planning.models import find_config
from paca.workbench.planning.optimizers import find_optimizer
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner, build, measure

SIZES = {**TINY, "intermediate_size": 192, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
CONFIG = tiny_llama_config(intermediate_size=192, num_hidden_layers=1, vocab_size=40_000)


@pytest.fixture(scope="module")
def planner():
    return Planner(CONFIG)


def step(planner, method="full", **changes):
    return planner.step(TrainingSetting(method, 8, 1, 64, **changes))


def test_eight_bits_quarter_the_optimizer_and_paged_states_are_elsewhere(planner):
    pytest.importorskip("bitsandbytes")
    whole = step(planner, dtype=torch.float32)
    eight = step(planner, dtype=torch.float32, optimizer="adamw_bnb_8bit")
    paged = step(planner, dtype=torch.float32, optimizer="paged_adamw_8bit")
    assert eight.peak.by_category["optimizer"] / whole.peak.by_category["optimizer"] == pytest.approx(0.254, abs=0.01)
    assert eight.paged == 0
    assert paged.paged > 0
    assert paged.paged + paged.peak.by_category["optimizer"] == pytest.approx(
        eight.peak.by_category["optimizer"], rel=0.01
    )


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_bnb_8bit"])
@pytest.mark.parametrize("loss", ["full", "chunked"])
def test_other_optimizers_and_losses_are_what_the_real_step_takes(planner, optimizer, loss):
    if optimizer == "adamw_bnb_8bit":
        pytest.importorskip("bitsandbytes")
    setting = TrainingSetting("paca", 8, 1, 64, torch.float32, attention="sdpa", optimizer=optimizer, loss=loss)
    real = measure(build(CONFIG, setting, "cpu"), setting, warm_up=True)
    assert planner.step(setting).peak.total == pytest.approx(real.peak.total, rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["paca", "lora", "full"])
@pytest.mark.parametrize(
    "family", [LlamaConfig, GemmaConfig, Phi3Config, GPT2Config], ids=lambda kind: kind.model_type
)
def test_lean_steps_are_planned_to_the_byte(family, method, checkpointing):
    config = family(**SIZES)
    lean, plain = (
        TrainingSetting(
            method, 4, 2, 32, torch.float32, checkpointing=checkpointing, attention="sdpa", loss="chunked", lean=lean
        )
        for lean in (True, False)
    )
    predicted = Planner(config).step(lean).peak
    assert predicted.total == measure(build(config, lean, "cpu"), lean, warm_up=True).peak.total
    kept = (found.by_category["activations"] for found in (predicted, Planner(config).step(plain).peak))
    assert next(kept) < next(kept) or checkpointing or method == "full"


def test_a_chunked_loss_keeps_no_logits(planner):
    logits = 512 * 40_000 * 4
    full, chunked = (
        planner.step(TrainingSetting("paca", 8, 1, 512, loss=loss)).peak.total for loss in ("full", "chunked")
    )
    assert full - chunked > logits / 2


def test_what_is_trained_in_16_bits_takes_half(planner):
    wide, narrow = step(planner, "lora"), step(planner, "lora", adapter_dtype=torch.bfloat16)
    assert narrow.peak.by_category["optimizer"] < 0.51 * wide.peak.by_category["optimizer"]


def test_four_ranks_hold_a_quarter_each_and_gather_blocks():
    planner = Planner(CONFIG)
    whole, part = (step(planner, dtype=torch.float32, ranks=ranks) for ranks in (1, 4))
    for category in ("parameters", "optimizer"):
        assert part.peak.by_category[category] / whole.peak.by_category[category] == pytest.approx(0.25, abs=0.01)
    assert part.peak.total > 1.5 * whole.peak.total / 4
    assert part.by_phase == whole.by_phase


def test_unknown_optimizers_and_losses_are_refused_with_near_ones():
    with pytest.raises(PacaError, match="did you mean 'adamw_bnb_8bit'"):
        find_optimizer("adamw_bnb_8bits")
    with pytest.raises(PacaError, match="did you mean 'chunked'"):
        find_loss("chunk")


@pytest.mark.parametrize("shape", ["vit-b-16", "tf_efficientnet_b0"])
@pytest.mark.parametrize("method", ["paca", "full"])
def test_image_classifiers_take_what_the_real_step_takes(shape, method):
    pytest.importorskip("timm")
    if shape == "vit-b-16":
        config = find_config(shape)
        config.num_hidden_layers, config.image_size = 2, 64
        setting = TrainingSetting(method, 8, 2, dtype=torch.float32, attention="sdpa", pixels=64)
    else:
        from transformers import TimmWrapperConfig

        from paca.workbench.planning.shapes import CONVOLUTIONS

        config = TimmWrapperConfig(architecture=shape, num_labels=10)
        setting = TrainingSetting(method, 8, 2, dtype=torch.float32, attention="sdpa", pixels=64, targets=CONVOLUTIONS)
    real = measure(build(config, setting, "cpu"), setting, warm_up=True)
    assert Planner(config).step(setting).peak.total == pytest.approx(real.peak.total, rel=0.03)
