import pytest
import torch
from transformers import LlamaConfig

from paca.profiling.operations import OperationCounter
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner

HIDDEN, MIDDLE, LAYERS, HEADS, VOCABULARY, TOKENS, BATCH, RANK = 64, 192, 2, 4, 300, 32, 2, 8
CONFIG = LlamaConfig(
    hidden_size=HIDDEN,
    intermediate_size=MIDDLE,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    vocab_size=VOCABULARY,
)
N = TOKENS * BATCH
ATTENTION = 2 * 2 * BATCH * TOKENS * (TOKENS + 1) // 2 * HIDDEN  # two products per pair of tokens under the mask
BLOCK = 2 * N * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * MIDDLE)
HEAD = 2 * N * HIDDEN * VOCABULARY
FORWARD = LAYERS * (BLOCK + ATTENTION) + HEAD


@pytest.fixture(scope="module")
def planner():
    return Planner(CONFIG)


def operations(planner, method, **changes):
    setting = TrainingSetting(method, RANK, BATCH, TOKENS, **changes)
    return planner.operations(setting, planner.step(setting))


def test_the_forward_pass_is_counted_as_its_formula_says(planner):
    # the rotary table is a product of one column: 2 operations per position and half a head
    assert operations(planner, "full").forward == pytest.approx(FORWARD, rel=1e-3)


def test_full_fine_tuning_adds_a_weight_gradient_per_product(planner):
    full = operations(planner, "full")
    assert full.adapter == FORWARD - LAYERS * ATTENTION
    assert full.optimizer > 100 * operations(planner, "paca").optimizer / 16


def test_paca_adds_the_gradient_of_its_columns_and_lora_much_more(planner):
    outputs = 4 * HIDDEN + 2 * MIDDLE + HIDDEN
    paca, lora = operations(planner, "paca"), operations(planner, "lora")
    assert paca.forward < lora.forward
    assert paca.adapter == LAYERS * 2 * N * RANK * outputs
    assert lora.adapter > 3 * paca.adapter


def test_checkpointing_computes_blocks_again_and_changes_nothing_else(planner):
    kept, recomputed = operations(planner, "paca"), operations(planner, "paca", checkpointing=True)
    assert kept.recompute == 0
    assert 0.9 * LAYERS * BLOCK < recomputed.recompute <= LAYERS * (BLOCK + ATTENTION)
    assert recomputed.forward == kept.forward
    assert recomputed.adapter == kept.adapter


def test_a_cpu_kernel_counts_as_a_gpu_one(planner):
    fused, sdpa = operations(planner, "paca"), operations(planner, "paca", attention="sdpa")
    assert (fused.forward, fused.backward) == (sdpa.forward, sdpa.backward)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_convolution_goes_back_at_twice_its_forward_also_in_groups(groups):
    layer = torch.nn.Conv2d(16, 32, 3, padding=1, groups=groups)
    x = torch.ones(2, 16, 8, 8, requires_grad=True)
    with OperationCounter(lambda: "forward") as forward:
        y = layer(x).sum()
    with OperationCounter(lambda: "backward") as backward:
        y.backward()
    assert forward.by_phase["forward"] == 2 * 2 * 8 * 8 * layer.weight.numel()
    assert backward.by_phase["backward"] == 2 * forward.by_phase["forward"]


def test_a_grouped_product_counts_each_row_once_and_goes_back_at_twice_that():
    rows = torch.randn(12, 8, dtype=torch.bfloat16, requires_grad=True)
    experts = torch.randn(3, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([4, 6, 12], dtype=torch.int32)
    with OperationCounter(lambda: "") as counter:
        torch._grouped_mm(rows, experts, offs=ends).float().sum().backward()
    assert counter.by_phase[""] == 3 * 2 * 12 * 8 * 16
