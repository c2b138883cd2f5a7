"""The table of lean forwards: every entry against the class that it names."""

import copy
import pkgutil

import pytest
import torch
from tests.paths import ROOT
from torch import nn

import paca
from paca.forwards.forms import FORMS, LOSS, form_of
from paca.profiling import kept_for_backward

EXAMPLES = [pytest.param(form, id=form.name) for form in (*FORMS, LOSS)]


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_installed_version_of_each_example_is_known(form):
    if form.example.startswith("timm"):
        pytest.importorskip("timm")
    if form is LOSS and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("torch has no linear_cross_entropy")
    kind = pkgutil.resolve_name(form.example)
    assert form_of(kind, (*FORMS, LOSS)) is form
    assert form_of(type("Changed", (kind,), {"forward": lambda self, x: x}), (*FORMS, LOSS)) is None


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_page_has_every_entry(form):
    page = (ROOT / "docs" / "lean.md").read_text(encoding="utf-8")
    name = form.example.split(":")[1]
    assert f"| {form.name} | {form.keeps} | `{name}`" in page.replace("`torch.nn.", "`")


@pytest.mark.parametrize("gate_last", [True, False])
@pytest.mark.parametrize("name", ["GluMlp", "SwiGLU"])
def test_timm_modules_are_bit_equal(name, gate_last):
    layers = pytest.importorskip("timm.layers")
    options = {"gate_last": gate_last} if name == "GluMlp" else {}
    torch.manual_seed(0)
    plain = getattr(layers, name)(6, 16, norm_layer=nn.LayerNorm, drop=0.0, **options)
    found = []
    for lean in (False, True):
        if lean:
            assert paca.lean(plain).changed[name] == 1
        x = torch.linspace(-2, 2, 30).reshape(5, 6).requires_grad_()
        y = plain(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("eps", [1e-6, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pytorchs_rms_norm_is_bit_equal_and_keeps_its_input(dtype, eps):
    plain = nn.RMSNorm(8, eps=eps, dtype=dtype)
    nn.init.uniform_(plain.weight, 0.5, 1.5)
    norm = copy.deepcopy(plain)
    paca.lean(norm)
    assert hasattr(type(norm), "lean_of")
    x = (1e-3 * torch.randn(5, 8)).to(dtype).requires_grad_()
    assert torch.equal(norm(x), plain(x))
    grad = torch.randn(5, 8, dtype=dtype)
    found, wanted = (torch.autograd.grad(one(x), (x, one.weight), grad) for one in (norm, plain))
    torch.testing.assert_close(found, wanted)
    rows = 5 * torch.float32.itemsize
    assert kept_for_backward(lambda: norm(2 * x)) == x.nbytes + rows < kept_for_backward(lambda: plain(2 * x))


def test_an_rms_norm_without_weight_is_left_alone_and_named():
    with pytest.warns(UserWarning, match="RMSNorm, it has no weight of one dimension"):
        assert not paca.lean(nn.RMSNorm(8, elementwise_affine=False)).changed
