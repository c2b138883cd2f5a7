"""Where PyYAML reads YAML 1.1, people mean 1.2."""

import pytest

from paca.workbench.base.yaml import dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-3", 0.005),
        ("1E6", 1e6),
        ("-.5e+2", -50.0),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("null", None),
        ("[q_proj, k_proj]", ["q_proj", "k_proj"]),
        ("1e", "1e"),
        ("q_proj", "q_proj"),
    ],
)
def test_scalars(text, value):
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_what_is_written_reads_the_same():
    value = {"a": "no", "b": "5e-3", "c": 0.00001, "d": [True, None, "é"]}
    assert parse(dump(value)) == value
