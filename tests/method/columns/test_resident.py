"""Resident columns: what a weight shows, when it is written, and that the pretrained values come back bit for bit."""

import gc

import pytest
import torch
from torch import nn

from paca.method.columns.resident import Columns, Term, adapted_columns, connection_union
from paca.method.columns.steps import stepped

OUT, IN = 6, 10


def make(dtype=torch.float32, connection_dim=1):
    shape = (OUT, IN) if connection_dim == 1 else (IN, OUT)
    weight = nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False)
    return weight, Columns(weight, connection_dim, delta_dim=1)


def term(*indices, scaling=1.0, dtype=torch.float32):
    delta = nn.Parameter(torch.randn(OUT, len(indices)).to(dtype))
    return Term(torch.tensor(indices), delta, scaling)


def adapted(weight, terms, connection_dim=1):
    """What the weight has to show, in the plainest arithmetic: float64, rounded once."""
    total = weight.detach().double().clone()
    for indices, delta, scaling, *_ in terms:
        update = scaling * delta.detach().double()
        total.index_add_(connection_dim, indices, update if connection_dim == 1 else update.t())
    return total.to(weight.dtype)


@pytest.mark.parametrize("connection_dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shows_the_sum_and_restores_every_bit(dtype, connection_dim):
    weight, columns = make(dtype, connection_dim)
    before = weight.clone()
    shown = (term(1, 4, 9, scaling=0.7),)
    columns.show(shown)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(weight, adapted(before, shown, connection_dim))
    columns.take_out()
    assert torch.equal(weight, before)


def test_untouched_columns_are_untouched():
    weight, columns = make()
    before = weight.clone()
    columns.show((term(1, 4),))
    others = [i for i in range(IN) if i not in (1, 4)]
    assert torch.equal(weight[:, others], before[:, others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_that_share_columns_add_up(dtype):
    weight, columns = make(dtype)
    before = weight.clone()
    terms = (term(1, 4, 9), term(0, 4, 5, 9, scaling=3.0))
    columns.show(terms)
    torch.testing.assert_close(weight, adapted(before, terms))
    columns.take_out()
    assert torch.equal(weight, before)


def test_from_one_adapter_to_another_without_a_trace():
    weight, columns = make(torch.bfloat16)
    before = weight.clone()
    columns.show((term(1, 4),))
    other = (term(4, 5),)
    columns.show(other)
    torch.testing.assert_close(weight, adapted(before, other), rtol=0, atol=0)


def test_union_and_sum_of_one_adapter_are_its_own():
    only = term(2, 3)
    assert connection_union([only]) is only.indices
    pretrained = torch.randn(2, OUT)
    total = adapted_columns(pretrained, only.indices, [only], dim=1)
    torch.testing.assert_close(total, pretrained + only.delta.detach().t())


def test_writes_only_when_something_changed():
    weight, columns = make()
    terms = (term(1, 4),)
    first = columns.show(terms)
    assert columns.show(terms) is first
    weight.data[:, 1] = 7  # a write of ours would overwrite this
    assert columns.show(terms) is first
    assert (weight[:, 1] == 7).all()
    with torch.no_grad():
        terms[0].delta.add_(1)
    assert columns.show(terms) is not first
    assert not (weight[:, 1] == 7).all()


def test_an_edit_in_place_is_seen_and_one_through_data_needs_telling():
    weight, columns = make()
    before = weight.clone()
    terms = (term(1, 4),)
    columns.show(terms)
    terms[0].delta.data.copy_(torch.ones(OUT, 2))
    columns.show(terms)
    assert not torch.equal(weight, adapted(before, terms))
    columns.invalidate()
    columns.show(terms)
    torch.testing.assert_close(weight, adapted(before, terms))


def test_another_scaling_is_another_content():
    weight, columns = make()
    before = weight.clone()
    terms = (term(1, 4),)
    columns.show(terms)
    terms = (terms[0]._replace(scaling=0.25),)
    columns.show(terms)
    torch.testing.assert_close(weight, adapted(before, terms))


def test_after_a_step_the_columns_are_written_anew():
    weight, columns = make()
    before = weight.clone()
    terms = (term(1, 4),)
    columns.show(terms)
    terms[0].delta.data.mul_(2)  # as a fused step: no version counter tells
    stepped([terms[0].delta, nn.Parameter(torch.zeros(3))])
    columns.show(terms)
    torch.testing.assert_close(weight, adapted(before, terms))
    columns.take_out()
    assert torch.equal(weight, before)


def test_a_weight_that_others_change_between_two_takings_out_stays_theirs():
    weight, columns = make()
    terms = (term(1, 4),)
    columns.show(terms)
    columns.take_out()
    with torch.no_grad():
        weight.add_(1)
    before = weight.clone()
    columns.take_out()
    columns.show(terms)
    columns.take_out()
    assert torch.equal(weight, before)


def test_a_step_of_another_model_leaves_columns_alone():
    _, columns = make()
    terms = (term(1, 4),)
    shown = columns.show(terms)
    stepped([nn.Parameter(torch.zeros(OUT, 2))])
    assert columns.show(terms) is shown


def test_merged_columns_outlast_steps():
    weight, columns = make()
    before = weight.clone()
    terms = (term(1, 4),)
    columns.show(terms)
    columns.pin()
    merged = weight.clone()
    stepped([terms[0].delta])
    assert torch.equal(weight, merged)
    columns.take_out()
    assert torch.equal(weight, before)


def test_a_weight_that_someone_else_wrote_is_read_anew():
    weight, columns = make()
    terms = (term(1, 4),)
    columns.show(terms)
    columns.take_out()
    with torch.no_grad():
        weight.fill_(3)
    before = weight.clone()
    columns.show(terms)
    torch.testing.assert_close(weight, adapted(before, terms))
    columns.take_out()
    assert torch.equal(weight, before)


def test_backward_finds_the_columns_of_its_forward():
    weight, columns = make()
    before = weight.clone()
    policy, other = (term(1, 4),), (term(4, 5),)
    shown = columns.show(policy)
    columns.take_out()
    columns.show(other)
    columns.show_again(shown)
    torch.testing.assert_close(weight, adapted(before, policy))


def test_backward_after_a_step_is_an_error_not_a_wrong_gradient():
    _, columns = make()
    terms = (term(1, 4),)
    shown = columns.show(terms)
    stepped([terms[0].delta])
    columns.show(terms)
    with pytest.raises(RuntimeError, match="changed before its backward pass"):
        columns.show_again(shown)


def test_what_was_handed_out_keeps_the_pretrained_values():
    weight, columns = make()
    before = weight.clone()
    alias = weight.detach()
    columns.hand_out(alias)
    columns.show((term(1, 4),))
    assert torch.equal(alias, before)
    assert not torch.equal(weight, before)


def test_what_was_handed_out_and_dropped_costs_no_copy():
    weight, columns = make()
    columns.hand_out(weight.detach())
    gc.collect()
    columns.show((term(1, 4),))
    assert columns._handed_out == []


def test_a_copy_has_pretrained_values_while_the_weight_shows_others():
    weight, columns = make()
    before = weight.clone()
    columns.show((term(1, 4),))
    assert torch.equal(columns.pretrained_copy(), before)
    assert torch.equal(columns.pretrained_columns(torch.tensor([0, 4])), before[:, [0, 4]].t())
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_for_training_is_given_back(dtype):
    weight, columns = make(dtype)
    before = weight.clone()
    columns.show((term(1, 4),), train=True)
    assert weight.is_contiguous() is (dtype != torch.float32)
    columns.take_out()
    assert torch.equal(weight, before)
    columns.release()
    assert weight.is_contiguous()
    assert torch.equal(weight, before)


def test_the_layout_does_not_depend_on_an_evaluation_before_training():
    """A resumed run has none, and must round as the run did that it continues."""
    evaluated, columns = make()
    terms = (term(1, 4),)
    columns.show(terms)
    columns.show(terms, train=True)
    assert not evaluated.is_contiguous()


def test_a_weight_that_others_hold_in_memory_keeps_its_layout():
    big = torch.randn(2 * OUT, IN)
    weight = nn.Parameter(big[:OUT], requires_grad=False)
    Columns(weight, 1, 1).show((term(1, 4),), train=True)
    assert weight.is_contiguous()
    assert weight.data_ptr() == big.data_ptr()
