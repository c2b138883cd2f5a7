"""Ranks that would train different things are refused at the start."""

import pytest
from tests.distributed.launch import on_ranks
from tests.distributed.tiny import PACA, make_model

from paca import PacaError
from paca.tuner import distributed as ranks
from paca.tuner.distributed import adapter_facts, check_ranks, differences


def checked(rank, seeds, versions=None):
    if versions is not None:
        ranks.versions = lambda _: versions[rank]
    try:
        check_ranks(make_model(**{**PACA, "random_seed": seeds[rank]}))
    except PacaError as error:
        return str(error)
    return None


def test_equal_ranks_pass():
    assert on_ranks(checked, [0, 0]) == [None, None]


def test_other_connections_are_refused_on_every_rank():
    messages = on_ranks(checked, [0, 0, 5], ranks=3)
    assert len(set(messages)) == 1
    assert "model.layers.0.self_attn.q_proj (adapter default): ranks 0, 1 have connections [" in messages[0]
    assert "; rank 2 has connections [" in messages[0]
    assert "Give PacaConfig a random_seed" in messages[0]


def test_other_versions_are_refused():
    messages = on_ranks(checked, [0, 0], [{"torch": "2.14.1"}, {"torch": "2.13.0"}])
    assert "torch: rank 0 has 2.14.1; rank 1 has 2.13.0. Install the same packages" in messages[1]


def test_one_process_has_nobody_to_differ_from(monkeypatch):
    asked = []
    monkeypatch.setattr(ranks, "adapter_facts", asked.append)
    check_ranks(make_model())
    assert not asked


def test_facts_name_every_layer_once():
    facts = adapter_facts(make_model())
    assert len(facts) == 14
    assert all("scaling 2" in fact for fact in facts.values())


@pytest.mark.parametrize(("other", "count"), [({"a": "1"}, 0), ({"a": "2"}, 1), ({}, 1), ({"a": "2", "b": "3"}, 2)])
def test_differences(other, count):
    assert len(differences([{"a": "1"}, other])) == count
