"""Columns of many weights put in at once are what they are when each is put in by itself, bit for bit."""

import logging
import sys

import pytest
import torch

from paca.method.columns import together
from paca.method.columns.block import same_bits
from paca.method.columns.lease import Lease
from paca.method.columns.resident import Columns
from paca.method.columns.together import kernels_for
from paca.method.columns.update import ColumnUpdate


def a_weight(out, inputs, dtype=torch.float32, *, transposed=False):
    weight = torch.randn(out, inputs).to(dtype)
    return torch.nn.Parameter(weight.t().contiguous().t() if transposed else weight, requires_grad=False)


def an_update(out, indices, scaling=2.0, dtype=torch.float32, **options):
    delta = torch.nn.Parameter(torch.randn(out, len(indices)).to(dtype))
    return ColumnUpdate(torch.tensor(indices), delta, scaling, **options)


def lend_together(weights, updates, keepers=None):
    lease = Lease()
    with lease.together():
        keepers = keepers or [Columns(1, 1) for _ in weights]
        return [k.lend(w, u, lease=lease) for k, w, u in zip(keepers, weights, updates, strict=True)]


def each_by_itself(weights, updates):
    expected = []
    for weight, own in zip(weights, updates, strict=True):
        with Columns(1, 1).lend(weight, own) as adapted:
            expected.append(adapted.clone())
    return expected


@pytest.fixture(params=["operators", "kernels"])
def way(request):
    """Each by itself, as on the CPU; and by kernels, which run in Triton's interpreter."""
    if request.param == "kernels":
        request.getfixturevalue("kernels_on_cpu")
    return request.param


@pytest.mark.parametrize(
    ("dtype", "delta_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    ],
    ids=str,
)
def test_many_weights_at_once_are_as_each_by_itself(way, dtype, delta_dtype):
    shapes = [(7, 10, False), (70, 40, True), (1, 1, False)]
    weights = [a_weight(out, inputs, dtype, transposed=transposed) for out, inputs, transposed in shapes]
    chosen = [[2, 3, 4], list(range(1, 40, 2)), [0]]
    updates = [
        (an_update(len(w), i, s, delta_dtype),) for w, i, s in zip(weights, chosen, (1.0, 2.0, 0.3), strict=True)
    ]
    before, expected = [weight.clone() for weight in weights], each_by_itself(weights, updates)
    keepers = [Columns(1, 1) for _ in weights]
    for _ in range(2):  # the second time in memory that is there already
        loans = lend_together(weights, updates, keepers)
        assert all(map(same_bits, weights, expected))
        del loans
        assert all(map(same_bits, weights, before))
    assert not any(map(torch.equal, expected, before))


def test_what_is_more_than_one_update_is_written_as_ever(way):
    weights = [a_weight(6, 12) for _ in range(4)]
    updates = [
        (an_update(6, [1, 4]),),
        (an_update(6, [1, 4]), an_update(6, [4, 7], 0.5)),
        (an_update(6, [2]), an_update(6, [0, 9], retired=True)),
        (),
    ]
    before, expected = [weight.clone() for weight in weights], each_by_itself(weights, updates)
    loans = lend_together(weights, updates)
    assert all(map(same_bits, weights, expected))
    del loans
    assert all(map(same_bits, weights, before))


def test_of_two_updates_of_one_weight_the_last_is_in_it(way):
    weight, updates = a_weight(6, 12), [(an_update(6, [1, 4]),), (an_update(6, [4, 5]),)]
    before, expected = weight.clone(), each_by_itself([weight] * 2, updates)
    first, second = lend_together([weight] * 2, updates)
    assert same_bits(weight, expected[1])
    with first as adapted:
        assert same_bits(adapted, expected[0])
    with second as adapted:
        assert same_bits(adapted, expected[1])
    del first, second
    assert same_bits(weight, before)


def test_columns_that_were_taken_out_and_put_in_again_are_put_back(way):
    weights, updates = [a_weight(6, 12) for _ in range(2)], [(an_update(6, [1, 4]),) for _ in range(2)]
    before, expected = [weight.clone() for weight in weights], each_by_itself(weights, updates)
    loans = lend_together(weights, updates)
    loans[0].lease.retract()
    assert all(map(same_bits, weights, before))
    with loans[0] as adapted:
        assert same_bits(adapted, expected[0])
        assert same_bits(weights[1], before[1])
    del loans
    assert all(map(same_bits, weights, before))


def test_a_failing_kernel_leaves_pretrained_weights(kernels_on_cpu, monkeypatch):
    weights, updates = [a_weight(6, 12) for _ in range(3)], [(an_update(6, [1, 4]),) for _ in range(3)]
    before = [weight.clone() for weight in weights]
    lend_together(weights, updates)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(the_kernel_module(), "launch", fail)
    with pytest.raises(MemoryError):
        lend_together(weights, updates)
    assert all(map(same_bits, weights, before))


def the_kernel_module():
    return sys.modules["paca.method.columns.kernel"]


def kernels_of(weight, update):
    return kernels_for(Columns(1, 1).rows(weight), update)


def test_the_kernels_are_used(kernels_on_cpu):
    weights, update = [a_weight(6, 12) for _ in range(2)], an_update(6, [1, 4])
    first, second = (kernels_of(weight, update) for weight in weights)
    assert first is not None
    assert first is second
    assert kernels_of(weights[0].bfloat16(), update) is not first


def test_a_table_is_copied_again_only_if_other_memory_is_meant(kernels_on_cpu):
    weight, update = a_weight(6, 12), an_update(6, [1, 4])
    kernels, keepers = kernels_of(weight, update), [Columns(1, 1)]
    for _ in range(3):
        lend_together([weight], [(update,)], keepers)
    tables = len(kernels._tables)
    lend_together([weight], [(update,)], keepers)
    assert len(kernels._tables) == tables
    update.delta.data = torch.randn(6, 2)
    loans = lend_together([weight], [(update,)], keepers)
    assert len(kernels._tables) == tables + 1
    loans[0].lease.retract()
    assert same_bits(weight[:, [1, 4]] + 2 * update.delta, each_by_itself([weight], [(update,)])[0][:, [1, 4]])


def test_weights_of_more_dimensions_are_moved_without_a_kernel(kernels_on_cpu):
    weight = torch.nn.Parameter(torch.randn(4, 8, 3, 3), requires_grad=False)
    assert kernels_of(weight, ColumnUpdate(torch.tensor([1, 5]), torch.randn(4, 2, 3, 3), 1.0)) is None


def test_kernels_that_set_other_bits_are_not_used_and_that_is_said_once(kernels_on_cpu, monkeypatch, caplog):
    launch = the_kernel_module().launch

    def launch_wrongly(function, grid, table, scalings, *arguments):
        launch(function, grid, table, scalings * 1.25, *arguments)

    monkeypatch.setattr(the_kernel_module(), "launch", launch_wrongly)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert kernels_of(a_weight(6, 12), an_update(6, [1, 4])) is None
    (record,) = caplog.records
    assert "Columns are written one weight after the other" in record.getMessage()
    assert "on cpu with torch.float32 weights and torch.float32 updates: it sets other bits" in record.getMessage()


def test_kernels_that_cannot_be_compiled_are_not_used(kernels_on_cpu, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(the_kernel_module(), "launch", fail)
    with caplog.at_level(logging.WARNING):
        assert kernels_of(a_weight(6, 12), an_update(6, [1, 4])) is None
    assert "RuntimeError: no compiler" in caplog.text


def test_without_triton_the_operators_do_it(monkeypatch):
    monkeypatch.setattr(together, "KERNEL_DEVICES", {"cpu"})
    monkeypatch.setattr(together, "has_triton", lambda: False)
    assert kernels_of(a_weight(6, 12), an_update(6, [1, 4])) is None


@pytest.mark.parametrize("dtypes", ["float32 float32", "bfloat16 float32", "bfloat16 bfloat16"])
@pytest.mark.parametrize("puts_in", [True, False])
def test_the_kernels_compile_for_a_gpu(dtypes, puts_in, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paca.method.columns.kernel import move_columns

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    values = (puts_in, *[getattr(triton.language, dtype) for dtype in dtypes.split()], triton.language.float32, 64, 16)
    constants = {(position,): value for position, value in enumerate(values, start=2)}
    signature = dict(zip(move_columns.arg_names, ["*i64", "*fp64", *["constexpr"] * 6], strict=True))
    source = ASTSource(move_columns, signature, constants)
    assert ".target sm_80" in triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
