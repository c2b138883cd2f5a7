"""The tiny model, once per session, and a recipe that trains it, fresh for each test."""

import pytest
from tests.workbench.tiny import make_tokenizer, recipe_content, save_model, write_text


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def content(tiny_model, tmp_path):
    return recipe_content(tiny_model, write_text(tmp_path / "text.txt"), tmp_path / "run")
