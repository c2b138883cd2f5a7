"""The benchmark measures what it says: every method is what its name says, and no two are the same."""

import argparse
import copy
import json

import pytest
import torch
from torch import nn

from methods import FLOOR, METHODS, check_that_methods_differ, choose_methods, trained_set
from models import load_base
from paca.profiling.steps import StepTime
from report import Figures, figures, noise, table, with_ratios
from step import main, prepare, setting
from swap import SwapLinear

TOKENS, RANK = 8, 4


@pytest.fixture(scope="module")
def base():
    return load_base("tiny", torch.float32, torch.device("cpu"))


def figure(step_ms: float, kept_bytes: int = 100) -> Figures:
    return Figures(step_ms, step_ms / 2, step_ms / 2, 0.0, kept_bytes, 7)


@pytest.mark.parametrize("bias", [True, False])
def test_swapping_gives_what_training_the_plain_layer_gives_for_these_columns(bias):
    plain = nn.Linear(12, 6, bias=bias, dtype=torch.float64)
    swap = SwapLinear(copy.deepcopy(plain), rank=3, alpha=6).double()
    swap.swap_delta.data.normal_()
    before = swap.base.weight.clone()
    with torch.no_grad():
        plain.weight[:, swap.indices] += 2 * swap.swap_delta
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    expected, actual = plain(x), swap(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(actual, swap.base(x)), "the columns do something"
    grad = torch.randn_like(expected)
    expected_x, expected_weight = torch.autograd.grad(expected, (x, plain.weight), grad)
    actual_x, actual_delta = torch.autograd.grad(actual, (x, swap.swap_delta), grad)
    torch.testing.assert_close(actual_x, expected_x, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual_delta, 2 * expected_weight[:, swap.indices], rtol=0, atol=1e-12)
    assert torch.equal(swap.base.weight, before), "the pretrained columns are back"


def test_swap_refuses_a_rank_that_the_layer_has_not():
    with pytest.raises(ValueError, match=r"rank 13 does not fit .* 12 input columns; give a rank from 1 to 12"):
        SwapLinear(nn.Linear(12, 6), rank=13)


def test_every_method_trains_its_own_parameters_and_changes_no_other_model(base):
    methods = choose_methods(None, torch.float32)
    steps = prepare(base, methods, TOKENS, RANK)
    for name, step in steps.items():
        before = {other: [p.detach().clone() for p in steps[other].trained] for other in steps}
        step.run()
        for other, values in before.items():
            pairs = zip(steps[other].trained, values, strict=True)
            changed = any(not torch.equal(now, then) for now, then in pairs)
            assert changed == (other == name and bool(step.trained)), f"a step of {name} and the parameters of {other}"


def test_all_methods_start_from_the_same_model(base):
    steps = prepare(base, choose_methods(None, torch.float32), TOKENS, RANK)
    losses = torch.stack([step.loss().detach() for step in steps.values()])
    torch.testing.assert_close(losses, losses[:1].expand_as(losses))


def test_what_each_method_trains(base):
    layers = [(name, m) for name, m in base.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    inputs = sum(m.in_features for _, m in layers)
    outputs = sum(m.out_features for _, m in layers)
    steps = prepare(base, choose_methods(None, torch.float32), TOKENS, RANK)
    trained = {name: sum(p.numel() for p in step.trained) for name, step in steps.items()}
    assert trained["floor"] == trained["floor again"] == 0
    assert trained["paca"] == trained["swap"] == trained["miss"] == trained["lora-fa"] == RANK * outputs
    assert trained["lora"] == trained["shira"] == RANK * (inputs + outputs)
    assert trained["dora"] == trained["lora"] + outputs
    assert trained["moslora"] == trained["lora"] + len(layers) * RANK * RANK
    assert trained["full"] == sum(p.numel() for p in base.parameters())


def test_what_each_method_keeps(base):
    steps = prepare(base, choose_methods(None, torch.float32), TOKENS, RANK)
    for step in steps.values():
        step.run()
    kept = {name: step.kept_bytes() for name, step in steps.items()}
    linears = 7 * base.config.num_hidden_layers
    outputs = sum(m.out_features for name, m in base.named_modules() if isinstance(m, nn.Linear) and name != "lm_head")
    slices = linears * TOKENS * RANK * 4
    assert kept["floor again"] == kept["floor"]
    assert kept["paca"] == kept["floor"] + slices
    assert kept["swap"] == kept["floor"] + slices + 2 * outputs * RANK * 4
    assert kept["lora"] > kept["lora-fa"] == kept["miss"] == kept["paca"]


def test_one_method_under_two_names_is_refused(base):
    model = METHODS["lora"].prepare(copy.deepcopy(base), RANK)
    again = METHODS["lora-base-dtype"].prepare(copy.deepcopy(base), RANK)
    with pytest.raises(RuntimeError, match=r"'lora' and 'lora-base-dtype' train the same parameters"):
        check_that_methods_differ({"lora": model, "lora-base-dtype": again})
    with pytest.raises(RuntimeError, match=r"'lora' and 'other' share a parameter"):
        check_that_methods_differ({"lora": model, "other": model})
    with pytest.raises(RuntimeError, match=r"'lora' trains nothing"):
        check_that_methods_differ({"lora": METHODS[FLOOR].prepare(copy.deepcopy(base), RANK)})


def test_selections_are_methods_of_their_own_and_not_measured_unless_named(base):
    names = ["paca", "paca-runs-8", "paca-runs-16", "paca-aligned"]
    usual = [method.name for method in choose_methods(None, torch.float32)]
    assert [name for name in names if name in usual] == ["paca"]
    steps = prepare(base, choose_methods(names, torch.float32), TOKENS, 16)
    for name in names:
        steps[name].run()
    kept = {name: steps[name].kept_bytes() - steps["floor"].kept_bytes() for name in names}
    assert kept["paca"] == kept["paca-runs-8"] == kept["paca-runs-16"] == kept["paca-aligned"] * 7 / 4


@pytest.mark.parametrize("name", ["paca-mlp-out", "paca-mlp", "paca-mlp-norms", "lora-half"])
def test_methods_on_other_layers_or_of_another_kind_train_as_many_values(base, name):
    models = {name: METHODS[name].prepare(copy.deepcopy(base), RANK) for name in ("paca", name)}
    trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}
    assert 0.8 * trained["paca"] < trained[name] < 1.1 * trained["paca"]
    assert name not in [method.name for method in choose_methods(None, torch.float32)]


def test_lora_in_the_bases_dtype_is_another_method_on_a_bfloat16_base():
    base = load_base("tiny", torch.bfloat16, torch.device("cpu"))
    assert "lora-base-dtype" in [method.name for method in choose_methods(None, torch.bfloat16)]
    dtypes = {
        name: {dtype for _, _, dtype in trained_set(METHODS[name].prepare(copy.deepcopy(base), RANK))}
        for name in ("lora", "lora-base-dtype")
    }
    assert dtypes == {"lora": {torch.float32}, "lora-base-dtype": {torch.bfloat16}}


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no method is called 'lorra'; choose from floor, .*lora"):
        choose_methods(["lorra"], torch.float32)


def test_the_floor_and_its_repetition_are_always_measured():
    assert [method.name for method in choose_methods(["paca", "paca"], torch.float32)] == [
        "floor",
        "floor again",
        "paca",
    ]


@pytest.mark.parametrize("text", ["256", "256:", ":8", "256:0", "1:8", "-1:8", "a:b", "256:16:1"])
def test_a_setting_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(argparse.ArgumentTypeError, match="write for example 256:16"):
        setting(text)


def test_settings_are_tokens_and_rank():
    assert setting("256:16") == (256, 16)


def test_figures_are_quartiles_in_milliseconds():
    steps = [StepTime(forward=0.001, backward=0.002, optimizer=0.003)] * 4
    assert figures(steps, 10, 20) == Figures(
        pytest.approx(6.0), pytest.approx(1.0), pytest.approx(2.0), pytest.approx(3.0), 10, 20
    )


def test_ratios_are_to_the_floor_and_to_lora():
    measured = {"floor": figure(10), "floor again": figure(11), "paca": figure(12, 150), "lora": figure(16)}
    row = with_ratios(measured)["paca"]
    assert (row["step_to_floor"], row["step_to_lora"], row["kept_to_floor"]) == (1.2, 0.75, 1.5)
    assert noise(measured) == 1.1
    assert "| paca | 12.0 | 1.200 | 0.750 | 6.0 | 6.0 | 0.0 | 0.00 | 1.500 | 7 |" in table(measured)


def test_without_lora_there_is_no_ratio_to_it():
    measured = {"floor": figure(10), "floor again": figure(10), "paca": figure(12)}
    assert with_ratios(measured)["paca"]["step_to_lora"] is None
    assert "| 1.200 | – |" in table(measured)


def test_a_run_prints_a_table_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    settings = ["--settings", "8:4", "16:2", "--steps", "2", "--methods", "paca", "lora"]
    status = main(["--config", "tiny", *settings, "--json", str(file)])
    assert status == 0
    assert "| paca |" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert [(found["tokens"], found["rank"]) for found in result["settings"]] == [(8, 4), (16, 2)]
    assert set(result["settings"][0]["methods"]) == {"floor", "floor again", "paca", "lora"}
    assert {"cpu", "cores", "threads", "load_average", "device"} == set(result["machine"])


MISTAKES = {
    "--methods lorra": "no method is called 'lorra'",
    "--config nowhere": "neither 'smollm2' nor 'tiny'. The model 'nowhere' is not a built-in shape (llama2-7b",
    "--steps 0": "'0' is not a whole number above zero",
    "--settings 256": "'256' is not TOKENS:RANK",
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.items())
def test_a_wrong_argument_ends_with_what_to_type(words, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words.split())
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
