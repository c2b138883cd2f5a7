import pytest
from matplotlib.figure import Figure

from paca.workbench.base.pictures import draw_losses, smoothed


@pytest.mark.parametrize("number", [1, 2, 3, 5, 40, 500])
def test_smoothing_keeps_lines_and_ends_and_takes_noise_away(number):
    line = [3.0 - 0.01 * place for place in range(number)]
    noise = [0.5 * (-1) ** place for place in range(number)]
    assert smoothed(line) == pytest.approx(line)
    noisy = smoothed([one + other for one, other in zip(line, noise, strict=True)])
    assert noisy[0] == pytest.approx(line[0] + 0.5)
    assert all(abs(one - other) < 0.2 for one, other in zip(noisy[2:-2], line[2:-2], strict=True))


def test_a_loss_curve_has_points_where_it_was_measured_and_a_line_only_where_there_are_many():
    metrics = {
        "recipe": {"method": {"name": "paca"}, "model": {"name": "m"}},
        "loss_curve": [[step, 3.0 + 0.1 * (-1) ** step] for step in range(1, 31)],
        "eval_curve": [],
        "before": {"loss": 3.2},
        "after": {"loss": 2.9},
        "steps": 30,
    }
    axes = Figure().subplots()
    draw_losses(axes, metrics, "token", "held out")
    raw, mean, held_out = axes.get_lines()
    assert (raw.get_linestyle(), held_out.get_linestyle()) == ("None", "None")
    assert list(held_out.get_xdata()) == [0, 30]
    assert raw.get_alpha() < 0.5
    assert raw.get_color() == mean.get_color() != held_out.get_color()
    assert max(mean.get_ydata()[2:-2]) - min(mean.get_ydata()[2:-2]) < 0.1 < 0.2
