"""The tiny models, once per session, and recipes that train them, fresh for each test."""

import numpy as np
import pytest
from tests.workbench.tiny import make_tokenizer, recipe_content, save_model, write_text
from tests.workbench.vision import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def content(tiny_model, tmp_path):
    return recipe_content(tiny_model, write_text(tmp_path / "text.txt"), tmp_path / "run")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory):
    return tiny.save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def npz(tmp_path):
    return tiny.write_npz(tmp_path / "shapes.npz", np.random.default_rng(0))


@pytest.fixture
def image_content(tiny_classifier, npz, tmp_path):
    return tiny.recipe_content(tiny_classifier, npz, tmp_path / "run")


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were written, last first."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *to, **how: figures.insert(0, self) or save(self, *to, **how))
    return figures
