import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from paca.errors import PacaError
from paca.workbench.base.search import largest_that_fits
from paca.workbench.planning.gpus import find_gpu
from paca.workbench.planning.methods import PLANNED, find_method
from paca.workbench.planning.models import find_config
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import build, measure, simulate

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
SHAPES = {"llama": LlamaConfig(**SMALL), "qwen2": Qwen2Config(**{**SMALL, "num_hidden_layers": 3, "hidden_size": 128})}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", PLANNED)
def test_the_prediction_is_what_the_real_step_takes(shape, method, checkpointing):
    if PLANNED[method].quantization:
        pytest.importorskip("bitsandbytes")
    setting = TrainingSetting(method, 8, 2, 64, torch.float32, checkpointing=checkpointing, attention="sdpa")
    predicted = simulate(SHAPES[shape], setting)
    real = measure(build(SHAPES[shape], setting, "cpu"), setting, warm_up=True).peak
    assert predicted.total == pytest.approx(real.total, rel=0.03)
    assert predicted.by_category[max(real.by_category, key=real.by_category.get)] > 0
    assert sum(predicted.by_category.values()) == predicted.total


def test_methods_and_settings_change_the_prediction():
    paca = simulate(SHAPES["llama"], TrainingSetting("paca", 8, 2, 64)).total
    lora = simulate(SHAPES["llama"], TrainingSetting("lora", 8, 2, 64)).total
    checkpointed = simulate(SHAPES["llama"], TrainingSetting("paca", 8, 2, 64, checkpointing=True)).total
    longer = simulate(SHAPES["llama"], TrainingSetting("paca", 8, 2, 128)).total
    assert checkpointed < paca < lora
    assert longer > paca


def test_names_that_are_unknown_are_refused_with_near_ones():
    with pytest.raises(PacaError, match="did you mean 'h100'"):
        find_gpu("h10O")
    with pytest.raises(PacaError, match="did you mean 'qlora'"):
        find_method("qlorra")
    with pytest.raises(PacaError, match="did you mean 'llama3-8b'"):
        find_config("llama3-8")


def test_a_gpu_may_be_given_by_its_size():
    assert find_gpu("80GB").bytes == find_gpu("a100-80gb").bytes == 80 * 2**30


@pytest.mark.parametrize("limit", [0, 1, 7, 128, 129, 1000, 5000])
@pytest.mark.parametrize("bend", [1, 2, 3])
def test_the_search_finds_the_largest_multiple(limit, bend):
    assert largest_that_fits(lambda size: size**bend - limit**bend, 128, 4096) == min(limit // 128 * 128, 4096)


def test_the_search_needs_few_trials_on_a_line():
    tried = []
    assert largest_that_fits(lambda size: tried.append(size) or size * 7 - 100_000, 1, 2**20) == 100_000 // 7
    assert len(tried) <= 8
