"""A tiny recipe, and one comparison of it that several tests look at."""

import pytest
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.compare.choice import choose_methods
from paca.workbench.compare.comparison import Comparison, compare
from paca.workbench.compare.folder import open_folder
from paca.workbench.compare.progress import Progress
from paca.workbench.compare.report import write_report
from paca.workbench.compare.worker import InProcessWorker
from paca.workbench.recipe.recipe import read_recipe


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    content = recipe_content(save_model(folder / "model"), write_text(folder / "text.txt"), folder / "run")
    return write_recipe(folder / "recipe.yaml", content)


@pytest.fixture(scope="session")
def recipe(recipe_file):
    return read_recipe(recipe_file)


@pytest.fixture(scope="session")
def here(recipe):
    """Runs units in this process, the model and the data loaded once."""
    return InProcessWorker(recipe)


def run(comparison, folder, worker):
    open_folder(folder, comparison.spec())
    with Progress() as progress:
        compare(comparison, folder, [worker], progress)
    return write_report(folder)


METHODS = "paca,lora,moslora,full,lora(target_modules=nowhere)"
RATES = {"paca": [1e-3, 1e-2], "lora": [1e-4, 1e-2]}


@pytest.fixture(scope="session")
def comparison(recipe):
    return Comparison(recipe, tuple(choose_methods(METHODS)), seeds=2, rates=RATES, sweep_steps=3, points=2, rounds=2)


@pytest.fixture(scope="session")
def compared(comparison, here, tmp_path_factory):
    """The folder of a finished comparison, and its results."""
    folder = tmp_path_factory.mktemp("report") / "out"
    return folder, run(comparison, folder, here)
