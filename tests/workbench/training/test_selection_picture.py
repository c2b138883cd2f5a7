"""What a picture of a selection says about itself."""

import pytest
import torch

from paca.workbench.training.selection_picture import CELLS, draw_selection

SIZES = {f"layers.{layer}.{kind}": size for layer in range(20) for kind, size in (("q", 96), ("down", 8 * CELLS))}


def chosen(step):
    return {name: torch.arange(0, size, step) for name, size in SIZES.items()}


@pytest.mark.parametrize("strategies", [["random"], ["random", "weight"], ["random", "weight", "gradient"]])
def test_every_heat_map_has_a_scale_and_axes(tmp_path, drawn, strategies):
    picture = tmp_path / "selection.png"
    draw_selection(picture, "a model", {name: chosen(5 + place) for place, name in enumerate(strategies)}, SIZES)
    axes = drawn[0].axes
    scales = [found for found in axes if found.get_label() == "<colorbar>"]
    maps = [found for found in axes if found.images and found not in scales and "common" not in found.get_title()]
    several = len(strategies) > 1
    assert len(maps) == 2 * (len(strategies) + several)
    assert [scale.get_ylabel() for scale in scales] == (
        ["chosen", "strategies", "chosen of 8", "strategies"] if several else ["chosen", "chosen of 8"]
    )
    assert [found.get_xlabel() for found in maps[-len(maps) // 2 :]] == ["input feature"] * (len(maps) // 2)
    assert maps[0].get_ylabel() == "layer"
    for found in maps:
        named = [int(text.get_text()) for text in found.get_yticklabels()]
        assert named == list(range(0, 20, 3))
