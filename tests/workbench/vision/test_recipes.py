"""The recipes for images that come with the package can be read, and their models and methods go together."""

import pytest

from paca.workbench.recipe.recipe import read_recipe, shipped_recipes
from paca.workbench.recipe.tasks import IMAGES
from paca.workbench.vision.arguments import image_method_config

RECIPES = {name: path for name, path in shipped_recipes().items() if name.startswith(("vit", "efficientnet"))}


def test_the_papers_runs_are_there():
    assert {"vit-cifar10", "vit-cifar100", "vit-pets", "vit-flowers102"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_and_its_method_can_be_made(name):
    recipe = read_recipe(RECIPES[name])
    assert recipe.task == IMAGES
    assert recipe.output_dir == f"outputs/{name}"
    config = image_method_config(recipe.method.name, recipe.method.config, ["head"])
    assert config.modules_to_save == ["head"]
