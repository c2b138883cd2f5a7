"""The table of lean forwards: every entry against the class that it names."""

import pkgutil

import pytest
import torch
from tests.paths import ROOT
from torch import nn

import paca
from paca.forwards.forms import FORMS, LOSS, form_of

EXAMPLES = [pytest.param(form, id=form.name) for form in (*FORMS, LOSS)]


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_installed_version_of_each_example_is_known(form):
    if form.example.startswith("timm"):
        pytest.importorskip("timm")
    kind = pkgutil.resolve_name(form.example)
    assert form_of(kind, (*FORMS, LOSS)) is form
    assert form_of(type("Changed", (kind,), {"forward": lambda self, x: x}), (*FORMS, LOSS)) is None


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_page_has_every_entry(form):
    page = (ROOT / "docs" / "lean.md").read_text(encoding="utf-8")
    assert (
        f"| {form.name} | {form.keeps} | `{form.example.split(':')[1]}`".replace("`Dropout", "`torch.nn.Dropout")
        in page
    )


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
