"""The picture of a plan."""

import pytest

from paca.workbench.base.palette import KINDS
from paca.workbench.planning.report import draw


def rows(*sizes):
    return [{"method": f"m{size}", "by_category": dict.fromkeys(KINDS, size * 2**30 / len(KINDS))} for size in sizes]


@pytest.mark.parametrize(("limit", "as_line"), [(None, False), (4, True), (1, True), (24, False), (1000, False)])
def test_the_limit_does_not_press_the_bars_flat(tmp_path, drawn, limit, as_line):
    draw(tmp_path / "plan.png", "a model", rows(1, 2), None if limit is None else limit * 2**30)
    (axes,) = drawn[0].axes
    assert 2 < axes.get_ylim()[1] <= 1.12 * 2.5 * 2
    assert bool(axes.get_lines()) == as_line
    above = [text.get_text() for text in axes.texts if "GPU" in text.get_text()]
    assert above == ([f"↑ the GPU's memory: {limit:,} GiB"] if limit and not as_line else [])
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["the GPU's memory"] * as_line + [label for label, _ in KINDS.values()]
