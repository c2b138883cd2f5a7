"""What a long plan shows of how far it is."""

import pytest
import rich.console

from paca.workbench.planning import progress
from paca.workbench.planning.progress import PlanProgress


@pytest.fixture
def terminal(monkeypatch):
    """The bar believes that somebody looks at it; what it draws is on standard error."""
    monkeypatch.setattr(
        progress, "Console", lambda **kwargs: rich.console.Console(**kwargs, force_terminal=True, width=100)
    )


def done(bar):
    return bar._bar.tasks[0].completed


def test_a_bar_is_drawn_where_somebody_looks(terminal, capsys):
    with PlanProgress(methods=2, searches=0) as bar:
        bar.say("paca")
    assert "paca" in capsys.readouterr().err


def test_nothing_is_drawn_elsewhere(capsys):
    with PlanProgress(methods=2, searches=0) as bar:
        bar.say("paca")
        bar.entered()
    assert capsys.readouterr().err == ""


def test_it_never_goes_back_and_never_beyond_its_method(capsys):
    with PlanProgress(methods=2, searches=1) as bar:
        seen = []
        for words in ("paca", *["paca, longest sequence"] * 30, "lora", *["lora, longest sequence"] * 30):
            bar.say(words)
            seen.append(done(bar))
            for _ in range(200):
                bar.entered()
            seen.append(done(bar))
    total = bar._bar.tasks[0].total
    paca = seen[: len(seen) // 2]
    assert max(paca) <= total / 2 + 0.9
    assert max(seen) <= total + 0.9
    assert [before <= after for before, after in zip(seen[::2], seen[2::2], strict=False)].count(False) == 0
