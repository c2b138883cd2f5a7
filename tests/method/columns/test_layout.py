"""The memory layout for training: chosen for float weights on the CPU, and given back to whoever looks at memory."""

import copy
import io

import pytest
import torch
from tests.method.columns.made import IN, OUT, adapted, make, update
from torch import nn

from paca.method.columns.layout import ConnectionMajorParameter
from paca.method.columns.resident import Columns

LOOKS = {
    "view": lambda weight: weight.view(-1),
    "detach and view": lambda weight: weight.detach().view(-1),
    "data and view": lambda weight: weight.data.view(-1),
    "vector": lambda weight: nn.utils.parameters_to_vector([weight]),
    "function and view": lambda weight: torch.abs(-weight).view(-1) * weight.sign().view(-1),
    "transposed": lambda weight: weight.t().contiguous().t().flatten(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_the_layout_is_given_back(dtype, look):
    weight, columns = make(dtype)
    before = weight.clone()
    with columns.lend(weight, (update(1, 4),), train=True):
        assert weight.is_contiguous() is (dtype == torch.bfloat16)
    assert torch.equal(look(weight), before.flatten())
    assert weight.is_contiguous()
    assert type(weight) is nn.Parameter


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_the_layout_is_given_back_while_columns_are_lent(look):
    weight, columns = make()
    before = weight.clone()
    updates = (update(1, 4),)
    loan = columns.lend(weight, updates, train=True)
    assert torch.equal(look(weight), before.flatten())
    with loan:
        torch.testing.assert_close(weight, adapted(before, updates))
    del loan
    assert torch.equal(weight, before)


def test_copies_and_pickles_have_the_ordinary_layout():
    weight, columns = make()
    before = weight.clone()
    for way in (copy.deepcopy, _pickled):
        loan = columns.lend(weight, (update(1, 4),), train=True)
        assert type(weight) is ConnectionMajorParameter
        twin = way(weight)
        del loan
        assert type(twin) is nn.Parameter
        assert twin.is_contiguous()
        assert torch.equal(twin, before)


def _pickled(weight):
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    return torch.load(file)


def test_new_memory_is_the_owners_business():
    weight, columns = make()
    with columns.lend(weight, (update(1, 4),), train=True):
        pass
    weight.data = torch.ones(OUT, IN)
    assert type(weight) is nn.Parameter
    assert torch.equal(weight, torch.ones(OUT, IN))


def test_the_layout_does_not_depend_on_an_evaluation_before_training():
    """A resumed run has none, and must round as the run did that it continues."""
    weight, columns = make()
    updates = (update(1, 4),)
    with columns.lend(weight, updates):
        pass
    with columns.lend(weight, updates, train=True):
        assert not weight.is_contiguous()


def test_a_weight_that_lies_in_a_larger_piece_of_memory_keeps_its_layout():
    big = torch.randn(2 * OUT, IN)
    weight = nn.Parameter(big[:OUT], requires_grad=False)
    with Columns(1, 1).lend(weight, (update(1, 4),), train=True):
        assert weight.is_contiguous()
        assert weight.data_ptr() == big.data_ptr()


def test_counting_bytes_and_asking_for_facts_leaves_the_layout_alone():
    weight, columns = make()
    loan = columns.lend(weight, (update(1, 4),), train=True)
    del loan
    assert (weight.shape, weight.device.type, weight.requires_grad) == ((OUT, IN), "cpu", False)
    assert weight.untyped_storage().nbytes() == weight.nbytes == weight.numel() * weight.element_size()
    assert type(weight) is ConnectionMajorParameter
