"""Known shapes are those of the published models."""

import pytest

from paca.workbench.planning.families import is_image_config
from paca.workbench.planning.models import find_config
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.shapes import SHAPES, find_shape
from paca.workbench.planning.simulate import build

# Parameters of the published checkpoints, as their pages on the Hub count them.
PARAMETERS = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama3-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "vit-b-16": 86_567_656,
    "efficientnetv2-l": 118_515_272,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_the_published_model(name):
    if name == "efficientnetv2-l":
        pytest.importorskip("timm")
    config = find_config(name)
    model = build(config, TrainingSetting("full"))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert is_image_config(config) == (name in ("vit-b-16", "efficientnetv2-l"))


def test_a_hub_name_of_a_known_shape_needs_no_network():
    assert find_shape("meta-llama/Llama-3.1-70B") is SHAPES["llama3.1-70b"]
    assert find_config("meta-llama/Meta-Llama-3-8B").vocab_size == 128256
