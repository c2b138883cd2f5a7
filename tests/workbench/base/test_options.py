"""A dataclass whose fields are options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from paca.workbench.base.options import (
    Several,
    SeveralSources,
    add_options,
    amount,
    option,
    read_options,
    split_words,
    too_small,
)


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


@pytest.mark.parametrize(
    ("text", "number"),
    [("2000000", 2_000_000), ("2_000_000", 2_000_000), ("2e6", 2_000_000), ("0.01", 0.01), ("1", 1)],
)
def test_amounts_are_whole_numbers_or_shares(text, number):
    assert amount(text) == number
    assert type(amount(text)) is type(number)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", "nan", "inf", "1%"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="neither a whole number of values"):
        amount(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("paca,lora", ["paca", "lora"]),
        (" paca , lora  dora,", ["paca", "lora", "dora"]),
        ("lora(r=8, bias=none),paca(rank_pattern={a: 1, b: [2, 3]})=1e-3", None),
        ("lora(r=8", ["lora(r=8"]),
        (" , ", []),
    ],
)
def test_words_are_split_outside_of_brackets(text, words):
    expected = ["lora(r=8, bias=none)", "paca(rank_pattern={a: 1, b: [2, 3]})=1e-3"] if words is None else words
    assert split_words(text) == expected


def test_an_option_with_several_words_takes_them_in_any_way(tmp_path, monkeypatch):
    made = argparse.ArgumentParser()
    made.add_argument("--names", action=Several, nargs="+", default=[])
    made.add_argument("--text", action=SeveralSources, nargs="+", default=())
    assert made.parse_args([]).names == []
    assert made.parse_args(["--names", "a,b", "c", "--names", "d e"]).names == ["a", "b", "c", "d", "e"]
    assert made.parse_args([]).names == [], "the default is nobody's to change"
    arguments = made.parse_args(["--names", "a", "training.max_steps=5", "seed=1", "b"])
    assert (arguments.names, arguments.later_overrides) == (["a", "b"], ["training.max_steps=5", "seed=1"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one, two.txt").touch()
    assert made.parse_args(["--text", "one, two.txt", "three.txt,four five.txt"]).text == [
        "one, two.txt",
        "three.txt",
        "four five.txt",
    ]
