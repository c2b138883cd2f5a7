"""The tiny model, once per session."""

import pytest
from tests.workbench.tiny import save_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))
