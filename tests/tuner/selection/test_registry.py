"""The registry lists itself, and takes strategies of the user's."""

import dataclasses

import pytest
import torch
from tests.toys import adapted, layers

import paca
from paca import PacaConfig, PacaError
from paca.tuner.selection import find_strategy, registry, strategies


@pytest.fixture
def register(monkeypatch):
    """Register for the time of one test."""
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))
    return paca.register_selection


def test_records_are_frozen_described_and_not_to_be_written_to():
    for name, strategy in strategies().items():
        assert strategy.name == name
        assert strategy.description
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_strategy("random").name = "other"
    with pytest.raises(TypeError):
        strategies()["mine"] = find_strategy("random")


def test_a_callable_chooses_where_its_scores_are_largest(register):
    register("last", lambda facts: torch.arange(facts.connections))
    _, model = adapted(selection="last")
    assert {name: layer.paca_indices["default"].tolist() for name, layer in layers(model).items()} == {
        "one": [7, 8, 9],
        "two": [9, 10, 11],
    }


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda facts: torch.zeros(3), r"selection='mine' returned \(3,\) for one; .* of shape \(10,\)"),
        (lambda facts: [1.0] * facts.connections, r"returned a list for one; it has to return a tensor"),
        (lambda facts: torch.full((facts.connections,), torch.nan), r"not finite numbers \(10 of 10\)"),
    ],
    ids=["shape", "type", "nan"],
)
def test_wrong_answers_are_refused_and_the_model_left_alone(register, score, message):
    register("mine", score)
    with pytest.raises(PacaError, match=message):
        adapted(selection="mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("random", len), r"'random' is taken"),
        (("", len), r"is not a text"),
        (("mine", 3), r"3 cannot be called"),
        (("mine", len, "", "loss"), r"data='loss' is unknown; pass None or one of 'activation', 'gradient'"),
    ],
)
def test_registering_nonsense_is_refused(register, arguments, message):
    with pytest.raises(PacaError, match=message):
        register(*arguments)


def test_an_unknown_name_comes_with_the_near_one():
    with pytest.raises(PacaError, match=r"selection='weights' is unknown; did you mean 'weight'\?"):
        PacaConfig(selection="weights")
