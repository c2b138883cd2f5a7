"""A dataclass whose fields are options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from paca.workbench.base.options import add_options, option, read_options, too_small


@dataclass(frozen=True)
class Trip:
    place: str = option("where to", positional=True, metavar="PLACE")
    days: int = option("how long (%(default)s)", 2, least=1)
    max_cost: float | None = option("at most", None, least=0, group="money")
    by_night: bool = option("travel at night", False)
    friends: Sequence[str] = option("who comes along", (), nargs="+")


def parser():
    made = argparse.ArgumentParser()
    add_options(made, Trip)
    return made


def read(*words):
    return read_options(parser().parse_args(words), Trip)


def test_what_is_typed_has_the_fields_types():
    assert read("Rome", "--days", "3", "--max-cost", "9.5", "--by-night", "--friends", "a", "b") == Trip(
        "Rome", 3, 9.5, True, ["a", "b"]
    )


def test_what_is_omitted_is_the_fields_default():
    assert read("Rome") == Trip("Rome")


def test_a_field_without_a_default_must_be_given(capsys):
    with pytest.raises(SystemExit):
        read()
    assert "PLACE" in capsys.readouterr().err


def test_help_says_the_group_and_the_default():
    text = parser().format_help()
    assert "how long (2)" in text
    assert "money:\n  --max-cost" in text


def test_numbers_below_the_least_are_named_as_they_are_typed():
    assert too_small(Trip("Rome", 0, -1.0)) == [
        "days = 0: expected at least 1",
        "max-cost = -1.0: expected at least 0",
    ]
    assert too_small(Trip("Rome")) == []
