"""A network of a few thousand weights from a configuration alone, and a recipe that trains it in a second."""

import numpy as np
import pytest
from tests.workbench.vision.tiny import recipe_content, save_classifier, write_npz


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def npz(tmp_path):
    return write_npz(tmp_path / "shapes.npz", np.random.default_rng(0))


@pytest.fixture
def content(tiny_classifier, npz, tmp_path):
    return recipe_content(tiny_classifier, npz, tmp_path / "run")
