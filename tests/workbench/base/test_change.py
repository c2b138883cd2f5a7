import math

import pytest

from paca.workbench.base.change import IMPROVED, UNCHANGED, WORSE, change

pytestmark = pytest.mark.road("comparisons")


@pytest.mark.parametrize(
    ("before", "after", "form", "expected"),
    [
        (15.69, 12.13, ".2f", IMPROVED),
        (12.13, 15.69, ".2f", WORSE),
        (15.69, 15.69, ".2f", UNCHANGED),
        (15.6912, 15.6903, ".2f", UNCHANGED),
        (15.6912, 15.6849, ".2f", IMPROVED),
        (100_000.21, 99_999.94, ".2f", UNCHANGED),
        (100_000.21, 99_900.0, ".2f", IMPROVED),
        (1.004, 1.006, ".2f", WORSE),
        (2.5, math.inf, ".4f", WORSE),
        (2.5, math.nan, ".4f", WORSE),
        (math.inf, 2.5, ".4f", IMPROVED),
        (math.inf, math.inf, ".4f", UNCHANGED),
        (0.0, 0.0, ".4f", UNCHANGED),
    ],
)
def test_a_change_is_more_than_rounding(before, after, form, expected):
    assert change(before, after, form) == expected
    opposite = {IMPROVED: WORSE, WORSE: IMPROVED, UNCHANGED: UNCHANGED}[expected]
    if not math.isnan(after):
        assert change(before, after, form, lower_is_better=False) == opposite


def test_images_are_counted():
    assert change(0.9812, 0.9813, ".1%", lower_is_better=False) == UNCHANGED
    assert change(0.981, 0.984, ".1%", lower_is_better=False) == IMPROVED
