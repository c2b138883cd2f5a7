import colorsys
import itertools

import pytest

from paca.workbench.base.palette import GREY, KINDS, PHASES, method_colours
from paca.workbench.methods.catalogue import FLOOR, METHODS


def saturation(tint):
    red, green, blue = (int(tint[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return colorsys.rgb_to_hsv(red, green, blue)[1]


def test_every_method_has_a_colour_of_its_own_and_the_floor_is_grey():
    tints = method_colours(METHODS)
    assert len(set(tints.values())) == len(METHODS)
    assert tints[FLOOR] == GREY


@pytest.mark.parametrize("others", [["frozen"], ["frozen", "lora", "full"], ["vera", "frozen", "paca(r=8)"]])
@pytest.mark.parametrize("label", ["paca", "lora", "ia3", "oft(oft_block_size=32)"])
def test_a_colour_is_the_same_in_whatever_company(label, others):
    assert method_colours([*others[:2], label])[label] == method_colours([label, *others])[label]


def test_several_of_one_method_are_shades_of_its_colour():
    labels = ["lora", "lora(r=4)", "lora(r=8)", "paca"]
    tints = method_colours(labels)
    assert len(set(tints.values())) == len(labels)
    assert tints["paca"] == method_colours(["paca"])["paca"]


def test_parts_of_a_bar_look_like_no_method():
    parts = {tint for _, tint in [*KINDS.values(), *PHASES.values()]}
    methods = set(method_colours(METHODS).values()) - {GREY}
    assert max(map(saturation, parts)) < min(map(saturation, methods))
    for each in (KINDS, PHASES):
        assert all(one != other for one, other in itertools.combinations([tint for _, tint in each.values()], 2))
