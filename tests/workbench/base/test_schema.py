"""Keys and values against annotations."""

from typing import Literal

import pytest
from transformers.trainer_utils import IntervalStrategy

from paca.workbench.base.messages import listing, suggestion
from paca.workbench.base.schema import describe, fits, unknown_keys, wrong_types


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("1e-3", float, False),
        (False, bool, True),
        (0, bool, False),
        (None, int | None, True),
        ("x", int | None, False),
        (["a"], list[str], True),
        ([1], list[str], False),
        ("a", list[str] | str | None, True),
        ({}, dict[str, int], True),
        ("nf4", Literal["nf4", True], True),
        ("nf5", Literal["nf4", True], False),
        ("steps", IntervalStrategy, True),
        (3, IntervalStrategy | str, False),
        (object(), type, True),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected


def test_unknown_key_suggests_the_near_one():
    assert unknown_keys("training", {"max_step": 5}, ["max_steps", "seed"]) == [
        "training.max_step = 5: there is no such key; did you mean 'max_steps'?"
    ]


def test_unknown_key_without_a_near_one_lists_the_known_ones():
    assert unknown_keys("", {"zzz": 1}, ["model", "data"]) == ["zzz = 1: there is no such key; known: data, model"]


def test_wrong_type_echoes_the_value_and_says_what_fits():
    assert wrong_types("data", {"eval_limit": "many"}, {"eval_limit": int | None}) == [
        "data.eval_limit = 'many': expected int or None, got str"
    ]


def test_words_for_annotations():
    assert describe(list[str] | dict[str, int] | Literal["a"]) == "list of str or dict of str and int or 'a'"


def test_long_lists_are_not_shown():
    assert listing(map(str, range(13))) == ""
    assert suggestion("abc", ["xyz"]) == ""
