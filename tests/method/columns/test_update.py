"""The values that updates give to columns."""

import torch
from tests.method.columns.made import OUT, update

from paca.method.columns.update import adapted_columns, connection_union, same_updates


def test_union_and_sum_of_one_adapter_are_its_own():
    only = update(2, 3)
    assert connection_union([only]) is only.indices
    pretrained = torch.randn(2, OUT)
    total = adapted_columns(pretrained, only.indices, [only], dim=1)
    torch.testing.assert_close(total, pretrained + only.delta.detach().t())


def test_updates_are_the_same_by_parameter_connections_and_scaling():
    one, other = update(2, 3), update(2, 3)
    assert same_updates([one], [one._replace()])
    for different in ([other], [one, other], [], [one._replace(scaling=2.0)], [one._replace(indices=other.indices)]):
        assert not same_updates([one], different)
