"""Runs whose adapters are exported."""

import pytest
from tests.workbench import tiny


@pytest.fixture
def run(request, tmp_path):
    """Train the recipe of the fixture that the module names as RECIPE; the run's folder."""
    content = request.getfixturevalue(request.module.RECIPE)

    def make(*overrides):
        tiny.run(content, tmp_path, *overrides)
        return tmp_path / "run"

    return make
