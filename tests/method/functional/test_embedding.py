"""The partial embedding against full fine-tuning of the plain one, restricted to the selected tokens."""

import pytest
import torch
from tests.method.functional.loans import Held, updates
from torch import nn

from paca.method.functional.embedding import embedding_update, partial_embedding, places

IDS = torch.tensor([[4, 0, 4, 9], [7, 7, 1, 4]])
SELECTED = torch.tensor([0, 4, 7, 8])
OPTIONS = {
    "plain": {},
    "padding that is selected": {"padding_idx": 7},
    "padding that is not": {"padding_idx": 1},
    "by frequency": {"scale_grad_by_freq": True},
    "sparse": {"sparse": True},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 6e-2}


def problem(options, dtype=torch.float64):
    table = nn.Embedding(10, 3, **options).to(dtype)
    return table, torch.zeros(4, 3, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ids", [IDS, IDS.int(), IDS[0], IDS[:, :0]], ids=["int64", "int32", "1-D", "none"])
def test_equals_full_fine_tuning(options, dtype, ids):
    table, delta = problem(options, dtype)
    wanted = table(ids)
    upstream = torch.linspace(-1, 1, wanted.numel(), dtype=dtype).reshape(wanted.shape)
    wanted.backward(upstream)
    full = table.weight.grad.to_dense()
    frozen = table.weight.detach()
    y = partial_embedding(
        ids, Held(frozen), table.padding_idx, table.scale_grad_by_freq, updates((SELECTED,), (2.5,), (delta,))
    )
    y.backward(upstream)
    assert torch.equal(y, wanted)
    assert delta.grad.dtype == dtype
    torch.testing.assert_close(delta.grad, 2.5 * full[SELECTED], rtol=0, atol=TOLERANCE[dtype])
    assert ids.numel() == 0 or delta.grad.any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_update_alone_has_the_same_gradient(options):
    table, delta = problem(options)
    wanted = table(IDS)
    upstream = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).reshape(wanted.shape)
    wanted.backward(upstream)
    y = embedding_update(IDS, delta, SELECTED, table.padding_idx, table.scale_grad_by_freq)
    y.backward(upstream)
    torch.testing.assert_close(delta.grad, table.weight.grad.to_dense()[SELECTED], rtol=0, atol=1e-12)
    with torch.no_grad():
        delta += torch.arange(12.0).reshape(4, 3)
    y = embedding_update(IDS, delta, SELECTED, None, False)
    shifted = torch.zeros(10, 3, dtype=torch.float64).index_add(0, SELECTED, delta.detach())
    assert torch.equal(y, shifted[IDS])


def test_gradcheck_with_repeated_tokens():
    table, delta = problem({})
    frozen = table.weight.detach()

    def run(delta, scale=0.5):
        shown = frozen.index_add(0, SELECTED, 0.5 * delta.detach())
        return partial_embedding(IDS, Held(shown), None, False, updates((SELECTED,), (scale,), (delta,)))

    assert torch.autograd.gradcheck(run, [delta])
    # The control: another scaling is another gradient.
    assert not torch.autograd.gradcheck(lambda delta: run(delta, 0.6), [delta], raise_exception=False)


def test_places_of_tokens_that_are_trained_and_of_the_others():
    assert places(IDS, SELECTED, None).tolist() == [[1, 0, 1, 4], [2, 2, 4, 1]]
    assert places(IDS, SELECTED, 7).tolist() == [[1, 0, 1, 4], [4, 4, 4, 1]]


def test_only_the_token_ids_are_kept():
    table, delta = problem({})
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        partial_embedding(IDS, Held(table.weight.detach()), None, False, updates((SELECTED,), (1.0,), (delta,)))
    assert [tensor.dtype for tensor in kept] == [torch.int64, torch.int64]
    assert {tensor.data_ptr() for tensor in kept} == {IDS.data_ptr(), SELECTED.data_ptr()}
