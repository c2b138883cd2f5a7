"""A rank larger than a layer: an error by default, capped with `clamp_rank`."""

import logging

import pytest
import torch
from peft import PeftModel
from tests.toys import adapted, inputs, layers, reference, train

from paca import PacaError


def test_a_rank_that_is_too_large_names_the_way_out():
    with pytest.raises(PacaError, match=r"(?s)r=11 does not fit one, which has 10 .* or clamp_rank=True to cap it"):
        adapted(r=11)


def test_clamped_layers_are_logged_trained_saved_and_loaded(caplog, tmp_path):
    with caplog.at_level(logging.WARNING, logger="paca.tuner.model"):
        plain, model = adapted(r=11, clamp_rank=True)
    assert [record.getMessage() for record in caplog.records] == [
        "clamp_rank: r=11 of one is capped at its 10 connections"
    ]
    assert {name: layer.r["default"] for name, layer in layers(model).items()} == {"one": 10, "two": 11}
    train(model)
    wanted = model(inputs())
    torch.testing.assert_close(wanted, reference(plain, model, inputs()), rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(adapted()[0], tmp_path)
    torch.testing.assert_close(fresh(inputs()), wanted, rtol=0, atol=1e-12)
