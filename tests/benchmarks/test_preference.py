"""The benchmark of preference accuracy runs the recipe at each seed, and says at how many it rose."""

import json

from tests.workbench.tiny import save_model, write_jsonl, write_recipe

import preference


def measured(accuracy, error):
    return {"accuracy": accuracy, "accuracy_error": error, "margin": 0.25, "kl": 0.01}


def test_what_is_printed_of_a_run_at_each_seed(monkeypatch, tmp_path, capsys):
    accuracies, seen = {1: 0.6, 2: 0.52, 3: 0.7}, []

    def finetune(recipe):
        assert recipe.method.config["random_seed"] == recipe.seed
        assert recipe.data.path == str(tmp_path)
        assert recipe.training["beta"] == 0.3
        seen.append(recipe.seed)
        after = measured(accuracies[recipe.seed], 0.05)
        return {"before": measured(0.5, 0.05), "after": after, "held_out": {"sequences": 9, "total": 12}, "steps": 4}

    monkeypatch.setattr("paca.workbench.training.run.finetune", finetune)
    file = tmp_path / "found.json"
    words = ["--data", str(tmp_path), "--set", "training.beta=0.3", "--json", str(file), "--seeds"]
    assert preference.main([*words, "1", "2"]) == 0
    capsys.readouterr()
    assert preference.main([*words, "1", "2", "3"]) == 0
    assert seen == [1, 2, 3], "what was run is not run again"
    printed = capsys.readouterr().out
    assert "| 1 | 50.0% | 60.0% | 5.0% | 0.250 | 0.0100 |" in printed
    assert (
        "9 of 12 held-out rows, 4 steps: 50.0% -> 60.7% in the mean; by more than the standard error at 2 of"
        in printed
    )
    assert len(json.loads(file.read_text())) == 3


def test_a_recipe_of_ones_own(tmp_path, capsys):
    pairs = [{"prompt": f"Q{number}", "chosen": " The cat", "rejected": f" A dog {number}"} for number in range(12)]
    content = {
        "task": "preference",
        "model": {"name": str(save_model(tmp_path / "model")), "dtype": "float32"},
        "method": {"name": "paca", "r": 4, "target_modules": "all-linear"},
        "data": {"train": str(write_jsonl(tmp_path / "pairs.jsonl", pairs)), "holdout_every": 3},
        "training": {"max_length": 64, "max_steps": 6, "learning_rate": 1e-2, "use_cpu": True, "beta": 0.5},
        "output_dir": str(tmp_path / "run"),
    }
    path = write_recipe(tmp_path / "recipe.yaml", content)
    assert preference.main(["--recipe", str(path), "--seeds", "5"]) == 0
    assert "4 of 4 held-out rows, 6 steps: 50.0% -> 100.0% in the mean; by more" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
