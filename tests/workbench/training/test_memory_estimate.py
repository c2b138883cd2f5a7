"""What is said of memory before a run."""

import pytest
import torch
from tests.workbench.tiny import write_recipe

from paca.workbench.planning import recipes
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.memory_estimate import say_memory
from paca.workbench.training.run import finetune


@pytest.fixture
def recipe(content, tmp_path):
    return read_recipe(write_recipe(tmp_path / "recipe.yaml", content))


def test_a_run_says_first_what_a_step_needs(recipe, capfd):
    finetune(recipe)
    first = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("note:"))
    assert first.startswith("note: estimated peak of a step: ")
    assert "weights" in first
    assert "CPU has" in first


def test_no_random_number_is_drawn(recipe):
    before = torch.get_rng_state()
    say_memory(recipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_estimate_that_fails_does_not_end_the_run(recipe, capfd, monkeypatch):
    def fail(recipe):
        raise RuntimeError("a kernel\nwithout a fake")

    monkeypatch.setattr(recipes, "estimate", fail)
    say_memory(recipe)
    assert "note: the memory of a step was not estimated: a kernel without a fake\n" in capfd.readouterr().err


def test_the_estimate_is_what_is_planned(recipe):
    estimated = recipes.estimate(recipe)
    assert 0 < estimated.peak.total < estimated.available
    assert f"{estimated.peak.total / 2**30:.2f} GiB" in estimated.line()


def test_neither_data_nor_another_checkpoint_is_needed(content, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", content)
    chosen = read_recipe(path, ["method.selection=activation", "method.column_source=smollm2-135m-instruct"])
    assert recipes.estimate(chosen).peak == recipes.estimate(read_recipe(path)).peak


@pytest.mark.parametrize(("size", "verdict"), [(2**40, "of"), (1, "which is more than the")])
def test_the_line_says_whether_it_fits(recipe, size, verdict):
    estimated = recipes.estimate(recipe)
    assert f", {verdict} {size / 2**30:.1f} GiB" in recipes.Estimate(estimated.peak, size).line()
