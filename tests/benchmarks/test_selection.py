"""The benchmarks of selection: what they run, what they keep, and what they print."""

import json
import math

import pytest
import torch
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

import selection
import selection_cost
from models import load_base
from selection import PRETRAINED, VARIANTS


@pytest.fixture
def recipe(tmp_path):
    content = recipe_content(save_model(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "run")
    return str(write_recipe(tmp_path / "recipe.yaml", content))


def run(recipe, file, *words):
    return selection.main(["--recipe", recipe, "--json", str(file), "--steps", "2", *words])


def test_a_stopped_benchmark_goes_on_where_it_was(recipe, tmp_path, capsys):
    file = tmp_path / "results.json"
    words = ["--variants", "random", "weight", "--seeds", "0", "1"]
    run(recipe, file, *words, "--most-runs", "1")
    first = json.loads(file.read_text())
    assert [key.split()[-2:] for key in first] == [["random", "seed=0"]]
    run(recipe, file, *words)
    whole = json.loads(file.read_text())
    assert len(whole) == 4
    assert whole.items() >= first.items()
    capsys.readouterr()
    run(recipe, file, *words, "--show")
    assert json.loads(file.read_text()) == whole
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| random |"))
    losses = [whole[key]["loss"] for key in whole if " random " in key]
    assert f"{sum(losses) / 2:.4f} | {abs(losses[0] - losses[1]) / 2**0.5:.4f} | {losses[0]:.4f}, " in row


def test_a_run_is_that_of_its_variant_seed_and_settings(recipe, tmp_path):
    def losses(*words):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        run(recipe, file, *words)
        return [result["loss"] for result in json.loads(file.read_text()).values()]

    one = losses("--variants", "random", "--seeds", "0")
    assert one == losses("--variants", "weight", "random", "--seeds", "0")[1:]  # whatever ran before it
    assert one != losses("--variants", "random", "--seeds", "1")
    assert one != losses("--variants", "random", "--seeds", "0", "--set", "training.learning_rate=0.5")


def test_variants_train_what_they_say(recipe, tmp_path):
    names = [PRETRAINED, "random", "gradient", "lora", "fixed-8", "moving-8"]
    run(recipe, tmp_path / "results.json", "--variants", *names, "--seeds", "0")
    results = {key.split()[-2]: found for key, found in json.loads((tmp_path / "results.json").read_text()).items()}
    assert list(results) == names
    assert results["random"]["trained"] == results["gradient"]["trained"] == 2 * results["moving-8"]["trained"]
    assert results["fixed-8"]["loss"] == results["moving-8"]["loss"]  # two steps: not moved yet
    assert len({results[name]["loss"] for name in names}) == len(names) - 1
    assert not results[PRETRAINED]["train_losses"]
    assert all(VARIANTS[name].description for name in VARIANTS)


def test_random_weights_take_the_place_of_the_recipes_model(recipe, tmp_path):
    file = tmp_path / "results.json"
    words = ["--random-weights", "--variants", PRETRAINED, "fixed-8", "--seeds", "0"]
    run(recipe, file, *words, "--set", "training.learning_rate=0.01")
    untrained, trained = json.loads(file.read_text()).items()
    assert " random-weights " in untrained[0]
    assert math.log(257) / 2 < trained[1]["loss"] < untrained[1]["loss"]
    run(recipe, file, *words, "--set", "training.learning_rate=0.01")
    assert len(json.loads(file.read_text())) == 2, "found again, wherever the model lies"


def test_time_is_a_ratio_to_full_steps(capsys):
    assert selection_cost.main(["--config", "tiny", "--tokens", "8", "--batches", "2", "--steps", "3"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [*selection_cost.STRATEGIES, "(full fine-tuning)"]
    assert all(float(row[1]) >= 0 and float(row[2]) > 0 for row in rows)


def test_memory_of_moving_is_that_of_fixed_connections_and_what_is_aside():
    base = load_base("tiny", torch.float32, torch.device("cpu"))
    fixed, moving, many = (
        selection_cost.peak_of(base, 64, rank, 2, moves) for rank, moves in ((4, False), (4, True), (12, False))
    )
    outputs = sum(
        module.out_features
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    assert fixed.aside == many.aside == 0
    assert moving.aside == 2 * 8 * outputs * 4  # updates of eight columns, and what is under them
    assert moving.peak - moving.aside <= 1.02 * fixed.peak < many.peak
