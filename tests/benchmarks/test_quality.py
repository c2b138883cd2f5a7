"""The benchmark of quality: how rates are searched, what is run next, and what the tables say."""

import dataclasses
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from scipy import stats
from tests.toys import tiny_llama_config
from torch import nn
from transformers import LlamaForCausalLM

import pretrained_llama
import quality
import quality_variants
from paca.profiling.steps import TrainingStep
from paca.tuner.layers.quantized import QuantizedLinear
from paca.tuner.selection.facts import LayerFacts
from paca.workbench.models.load import load_model
from quality import CHOOSING_SEED, Run
from quality_tasks import TASKS, Subject, Task, batches_of
from quality_variants import LORA_RANK, MAIN, VARIANTS, adapted, equal_rank, loss_over, matched, with_rank
from stepping import linear_decay, make_optimizer

LAYERS = {
    "all": r".*\.(q_proj|down_proj)",
    "out": r".*\.down_proj",
    "lower": r".*\.layers\.0\..*",
    "upper": r".*\.layers\.1\..*\.(q_proj|down_proj)",
    "upper-mlp": r".*\.layers\.1\..*\.down_proj",
}


def load(data, cache):
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config())
    drawing = torch.Generator().manual_seed(0)
    blocks = [{"input_ids": ids, "labels": ids} for ids in torch.randint(128, (6, 2, 8), generator=drawing)]

    def batches(seed):
        return itertools.cycle(blocks[seed % 2 : 2])

    return Subject(model, batches, blocks[2:3], blocks[3:5], blocks[5:])


TASK = Task("toy", "a toy", 3, LAYERS, load)


@pytest.fixture
def task(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", TASK)
    return TASK


def run(file, *words):
    return quality.main(["--tasks", "toy", "--json", str(file), *words])


def losses_by_rate(losses, variant="lora"):
    """Results as if a search had found these losses."""
    return {Run("toy", variant, rate, CHOOSING_SEED).key: {"loss": loss} for rate, loss in losses.items()}


def test_a_rate_is_the_best_once_worse_ones_lie_on_either_side():
    start = VARIANTS["lora"].rate
    lossy = lambda best: lambda rate: abs(torch.tensor(rate / best).log2().item())  # noqa: E731
    for steps in (-3, -1, 0, 2):
        loss, known = lossy(start * 2**steps), {}
        while (found := quality.search(losses_by_rate(known), TASK, VARIANTS["lora"])).next_rate is not None:
            known[found.next_rate] = loss(found.next_rate)
        assert found.best == start * 2**steps
        assert not found.at_edge
        assert {found.best / 2, found.best * 2} <= known.keys()


def test_a_search_that_never_turns_ends_at_an_edge_and_says_so():
    known = {}
    while (found := quality.search(losses_by_rate(known), TASK, VARIANTS["lora"])).next_rate is not None:
        known[found.next_rate] = -found.next_rate
    assert found.at_edge
    assert len(known) == 9
    results = losses_by_rate(known) | {Run("toy", "lora", found.best, 0).key: a_run(1.0)}
    (row,) = quality.rows(results, TASK, ["lora"], [0])
    assert row[1] == f"{found.best:g} (edge)"
    (row,) = quality.search_rows(losses_by_rate({0.004: 2.0, 0.002: 3.0, 0.008: 4.0}), TASK, ["lora", "paca-all"])
    assert row == ("lora", "0.004", "2.0000", "0.002: 3.0000, 0.004: 2.0000, 0.008: 4.0000")


def a_run(loss):
    return {"loss": loss, "unrelated": 2.0, "trained": 1000, "cpu_seconds_per_step": 0.5}


def test_differences_are_paired_by_seed_with_students_interval():
    lora, paca = {0: 2.0, 1: 3.0, 2: 4.0}, {0: 2.02, 1: 2.97, 2: 4.04, 3: 9.0}
    ratios = [100 * (paca[seed] / lora[seed] - 1) for seed in lora]
    low, high = stats.t.interval(0.95, 2, statistics.mean(ratios), stats.sem(ratios))
    assert quality.paired(paca, lora) == f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
    assert quality.paired({0: 2.02}, lora) == "+1.00"
    assert quality.paired({7: 2.0}, lora) == "–"


def test_a_stopped_benchmark_goes_on_where_it_was(task, tmp_path, capsys):
    file = tmp_path / "quality.json"
    words = ["--variants", "lora", "paca-out-muon", "--seeds", "0", "1"]
    run(file, *words, "--most-runs", "2")
    first = json.loads(file.read_text())["runs"]
    start = VARIANTS["lora"].rate
    assert list(first) == [Run("toy", "lora", rate, CHOOSING_SEED).key for rate in (start, start / 2)]
    assert all(found["unrelated"] is None for found in first.values())
    run(file, *words)
    whole = json.loads(file.read_text())
    assert whole["runs"].items() >= first.items()
    assert {"torch", "peft"} <= whole["versions"].keys()
    assert len([key for key in whole["runs"] if key.endswith(("seed 0", "seed 1"))]) == 4
    capsys.readouterr()
    run(file, *words, "--show")
    assert json.loads(file.read_text()) == whole
    printed = capsys.readouterr().out
    assert "toy: a toy" in printed
    assert re.search(
        r"\| paca-out-muon \| +[\d.e-]+( \(edge\))? \| +[\d,]+ \| +\d\.\d{4} \| +[+-]\d+\.\d\d ± ", printed
    )


def test_the_page_has_the_tables_of_the_committed_results(capsys):
    root = Path(quality.__file__).parent.parent
    file = root / "benchmarks" / "results" / "quality.json"
    quality.main(["--json", str(file), "--show", "--rate-shares", "1", "0.5", "0.25", "--variants", *VARIANTS])
    rows = {line for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    page = (root / "docs" / "evidence.md").read_text(encoding="utf-8").partition("<!-- end of results -->")[0]
    told = {line for line in page.splitlines() if line.startswith("|")}
    assert len(told) > 5
    assert told <= rows


def test_what_is_forgotten_is_compared_at_the_same_loss():
    rate = VARIANTS["lora"].rate
    done = losses_by_rate({rate: 1.0, rate / 2: 2.0, rate * 2: 2.0})
    done |= losses_by_rate({0.004: 1.0, 0.002: 2.0, 0.008: 2.0}, "paca-all-memory")
    points = {("lora", rate): (2.0, 4.0), ("lora", rate / 2): (3.0, 2.0)}
    points |= {("paca-all-memory", 0.004): (1.0, 5.0), ("paca-all-memory", 0.002): (2.5, 1.5)}
    for (variant, at), (loss, unrelated) in points.items():
        done[Run("toy", variant, at, 7).key] = a_run(loss) | {"unrelated": unrelated}
    rows = list(quality.forgetting_rows(done, TASK, ["lora", "paca-all-memory"], [7], [1, 0.5]))
    assert [row[2:] for row in rows] == [
        ("2.0000", "4.0000", ""),
        ("3.0000", "2.0000", ""),
        ("1.0000", "5.0000", "+25.00"),  # lower than LoRA got: compared with LoRA at its lowest
        ("2.5000", "1.5000", "-50.00"),  # half-way between LoRA's two
    ]
    beyond = done | {Run("toy", "paca-all-memory", 0.002, 7).key: a_run(3.5)}
    assert list(quality.forgetting_rows(beyond, TASK, ["lora", "paca-all-memory"], [7], [1, 0.5]))[-1][-1] == "–"


def test_seeds_are_trained_at_every_share_of_the_best_rate(task, tmp_path, capsys):
    words = ["--variants", "lora", "--seeds", "0", "--rate-shares", "1", "0.5"]
    run(tmp_path / "quality.json", *words)
    runs = json.loads((tmp_path / "quality.json").read_text())["runs"]
    best = quality.search(runs, TASK, VARIANTS["lora"]).best
    assert {Run("toy", "lora", best * share, 0).key for share in (1, 0.5)} <= runs.keys()
    assert "to LoRA's at the same loss" in capsys.readouterr().out


def test_all_rates_come_first_and_then_seed_by_seed(task):
    done = {}
    for variant in ("lora", "paca-all"):
        rate = VARIANTS[variant].rate
        done |= losses_by_rate({rate: 1.0, rate / 2: 2.0}, variant)
    rates = [VARIANTS[variant].rate * factor for variant, factor in (("lora", 2), ("paca-all", 2))]
    order = []
    while (found := quality.next_run(done, TASK, ["lora", "paca-all"], [0, 1])) is not None:
        order.append((found.variant, found.rate, found.seed))
        done[found.key] = a_run(3.0)
    assert order[:2] == [("lora", rates[0], CHOOSING_SEED), ("paca-all", rates[1], CHOOSING_SEED)]
    assert [(variant, seed) for variant, _, seed in order[2:]] == [
        ("lora", 0),
        ("paca-all", 0),
        ("lora", 1),
        ("paca-all", 1),
    ]


@pytest.mark.parametrize("name", ["lora-norms", "paca-norms"])
def test_norms_are_trained_at_the_adapters_rate_within_the_same_number_of_values(name):
    subject = load(None, None)
    model = adapted(VARIANTS[name], TASK, subject, 0)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    (group,) = make_optimizer(model, "adamw", 0.5, others=0.25).optimizers[0].param_groups
    found = {id(value) for value in group["params"]}
    assert {key for key, value in trained.items() if id(value) in found} == set(trained)
    norms = quality_variants.norms(subject.model)
    assert len(norms) == len([key for key in trained if "norm" in key]) == 5
    wanted = sum(LORA_RANK * sum(sides) for sides in matched(subject.model, LAYERS["all"]))
    column = sum(outputs for outputs, _ in matched(subject.model, LAYERS["all"]))
    if name == "paca-norms":
        assert abs(sum(value.numel() for value in trained.values()) - wanted) <= column / 2
    assert not quality._applies(VARIANTS[name], TASKS["efficientnet-cifar"])


@pytest.mark.parametrize("name", MAIN)
def test_variants_train_as_many_values_and_what_they_say(name):
    subject, variant = load(None, None), VARIANTS[name]
    model = adapted(variant, TASK, subject, 0)
    trained = {key: value.numel() for key, value in model.named_parameters() if value.requires_grad}
    wanted = sum(LORA_RANK * sum(sides) for sides in matched(subject.model, LAYERS["all"]))
    column = sum(outputs for outputs, _ in matched(subject.model, LAYERS[variant.layers]))
    assert abs(sum(trained.values()) - wanted) <= column / 2
    assert all(("lora_" in key) == (variant.method == "lora") for key in trained)
    assert any("q_proj" in key for key in trained) == (variant.layers == "all")
    kinds = {type(optimizer).__name__ for optimizer in make_optimizer(model, variant.optimizer, 1.0, 1.0).optimizers}
    assert kinds == {{"muon": "Muon", "adamw": "AdamW"}[variant.optimizer]}


def test_a_run_is_that_of_its_seed_and_leaves_the_model_alone():
    subject = load(None, None)
    before = [value.clone() for value in subject.model.parameters()]
    run_once = quality_variants.run_once
    one = run_once(VARIANTS["paca-all"], TASK, subject, 0.1, 0, choosing=False)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.model.parameters(), strict=True))
    again = run_once(VARIANTS["paca-all"], TASK, subject, 0.1, 0, choosing=False)
    assert one["loss"] == again["loss"]
    assert one["loss"] != run_once(VARIANTS["paca-all"], TASK, subject, 0.1, 1, choosing=False)["loss"]
    assert one["loss"] != run_once(VARIANTS["paca-all"], TASK, subject, 0.1, 0, choosing=True)["loss"]
    assert one["unrelated"] == pytest.approx(loss_over(subject.model, subject.unrelated), rel=0.2)
    assert loss_over(subject.model, []) is None


def test_strategies_choose_other_connections_by_the_runs_own_batches():
    subject = load(None, None)
    chosen = {
        name: torch.cat(
            [value for key, value in adapted(VARIANTS[name], TASK, subject, 0).named_buffers() if "indices" in key]
        )
        for name in ("paca-out", "paca-out-weight", "paca-out-gradient", "paca-out-weight-activation")
    }
    assert len({tuple(indices.tolist()) for indices in chosen.values()}) == 4
    assert len({len(indices) for indices in chosen.values()}) == 1


def test_columns_of_before_quantization_are_for_quantized_models(tmp_path):
    LlamaForCausalLM(tiny_llama_config()).save_pretrained(tmp_path)
    quantized = load_model(str(tmp_path), "float32", "nf4")
    subject = dataclasses.replace(load(None, None), model=quantized, source=str(tmp_path))
    model = adapted(VARIANTS["paca-all-restored"], TASK, subject, 0)
    rank = equal_rank(quantized, LAYERS["all"], LAYERS["all"])
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    assert {layer.r["default"] for layer in layers} == {rank}
    assert not any(layer.trained_from("default")[1] for layer in layers)  # nothing of it is rounded
    others = adapted(VARIANTS["paca-all"], TASK, subject, 0).modules()
    assert all(layer.trained_from("default")[1] for layer in others if isinstance(layer, QuantizedLinear))
    names = ["lora", "paca-all", "paca-all-restored"]
    assert quality._applicable(TASKS["llama-reference-nf4"], names) == names
    assert quality._applicable(TASKS["llama-reference"], names) == names[:2]


def test_warm_up_and_weight_decay_reach_the_steps():
    subject, task = load(None, None), dataclasses.replace(TASK, steps=10)
    plain, warm, decay = (
        quality_variants.run_once(VARIANTS[name], task, subject, 0.1, 0, choosing=False)["loss"]
        for name in ("paca-all", "paca-all-warm", "paca-all-decay")
    )
    assert len({plain, warm, decay}) == 3
    assert linear_decay(10, rising=0.2)(0) == 0.5


def test_a_longer_run_takes_more_steps_of_the_same_kind():
    subject = load(None, None)
    task = dataclasses.replace(TASK, steps=10)
    found = quality_variants.run_once(VARIANTS["paca-out-longer"], task, subject, 0.1, 0, choosing=False)
    assert found["steps"] == 14
    assert found["trained"] == quality_variants.run_once(VARIANTS["paca-out"], task, subject, 0.1, 0, False)["trained"]


@pytest.mark.parametrize(
    "variant", ["lora-upper", "lora-upper-norms", "paca-upper", "paca-upper-norms", "paca-upper-mlp-norms"]
)
def test_variants_of_the_upper_half_train_as_many_values_there(variant):
    subject = load(None, None)
    names = {
        name: value.numel()
        for name, value in adapted(VARIANTS[variant], TASK, subject, 0).named_parameters()
        if value.requires_grad
    }
    assert not [name for name in names if ".layers.0." in name]
    norms = [name for name in names if "norm" in name]
    assert len(norms) == (3 if VARIANTS[variant].norms else 0)
    values = sum(LORA_RANK * sum(sides) for sides in matched(subject.model, LAYERS["all"]))
    beside = sum(names[name] for name in norms) if variant.startswith("lora") else 0
    step = sum(outputs for outputs, _ in matched(subject.model, LAYERS["upper"]))
    assert sum(names.values()) - beside == pytest.approx(values, abs=step)


def test_the_strategies_that_are_tried_score_columns_as_they_say():
    torch.manual_seed(0)
    thin = torch.randn(40, 16) @ torch.randn(16, 24)  # columns first, of rank 16
    statistic = torch.rand(40)
    facts = LayerFacts("layer", 40, 0, lambda: thin, statistic)
    energies = thin.double().square().sum(1)
    torch.testing.assert_close(quality_variants.smoothed_weight_scores(facts), energies)
    torch.testing.assert_close(quality_variants.weight_gradient_scores(facts), energies * statistic)
    for name in ("paca-out-smoothed", "paca-out-weight-gradient"):
        model = adapted(VARIANTS[name], TASK, load(None, None), 0)
        assert model.peft_config["default"].selection == VARIANTS[name].selection
        assert {name for name, _ in model.named_parameters() if "paca_delta" in name}


def test_a_rank_by_memory_is_the_largest_that_peaks_no_higher():
    subject = load(None, None)
    rank = quality_variants.rank_by_memory(VARIANTS["paca-all-memory"], TASK, subject)
    batch = next(subject.batches(0))

    def peak(variant, rank):
        step = TrainingStep(with_rank(rank, VARIANTS[variant], TASK, subject, 0).train(), batch)
        step.run()
        return step.peak().total

    assert peak("paca-all-memory", rank) <= peak("lora", LORA_RANK) < peak("paca-all-memory", rank + 1)


def test_a_head_is_stepped_by_adamw_at_a_rate_of_its_own():
    model = nn.Module()
    model.modules_to_save = nn.Linear(3, 2)
    model.delta = nn.Parameter(torch.zeros(3, 2))
    stepper = make_optimizer(model, "muon", 0.5, others=0.25)
    stepper.at(0.5)
    found = {type(optimizer).__name__: optimizer.param_groups[0] for optimizer in stepper.optimizers}
    assert found["Muon"]["lr"] == 0.25
    assert found["AdamW"]["lr"] == 0.125
    assert len(found["AdamW"]["params"]) == 2


def test_rates_rise_and_fall_to_zero():
    shares = [linear_decay(100)(number) for number in range(100)]
    assert shares[4] == max(shares) == 1
    assert shares[0] == pytest.approx(0.2)
    assert shares == [*sorted(shares[:5]), *sorted(shares[5:], reverse=True)]
    assert 0 < shares[-1] < 0.02


def test_batches_are_padded_and_the_loss_counts_what_carries_one():
    sequences = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    (batch,) = batches_of([*sequences, sequences[0]], 2, pad=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tasks_of_data_that_is_not_there_say_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--tasks", "efficientnet-cifar", "--data", str(tmp_path)])
    assert "'cifar10.npz' is not there: name the folder that has it with --data" in capsys.readouterr().err


def test_a_llama_is_pretrained_once(tmp_path, monkeypatch):
    texts = ["def f(x):\n    return x + 1\n" * 20] * 4
    monkeypatch.setattr(pretrained_llama, "source_code", lambda: (texts, texts))
    monkeypatch.setattr(pretrained_llama, "STEPS", 2)
    model, tokenizer = pretrained_llama.load_pretrained_llama(tmp_path)
    assert model.config.vocab_size >= len(tokenizer)
    written = (tmp_path / "model.safetensors").read_bytes()
    assert pretrained_llama.load_pretrained_llama(tmp_path)[0].config.hidden_size == model.config.hidden_size
    assert (tmp_path / "model.safetensors").read_bytes() == written
    assert equal_rank(model, TASKS["llama-reference"].layers["all"], TASKS["llama-reference"].layers["out"]) > 16


def test_source_code_is_held_out_from_pretraining():
    train, held_out = pretrained_llama.source_code()
    assert held_out
    assert len(train) > 10 * len(held_out)
    assert not set(held_out) & set(train)
