"""`column_source` with the name of an embedded model: the columns are its own, unquantized, and the name stays."""

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from tests.toys import layers
from tests.workbench.tiny import run

from paca import PacaConfig
from paca.workbench.models import embedded_columns
from paca.workbench.models.embedded import SMOLLM2
from paca.workbench.models.embedded_columns import columns_of_embedded
from paca.workbench.models.load import load_model


@pytest.fixture
def embedded(tiny_model, monkeypatch):
    """The tiny model in place of the embedded one."""
    monkeypatch.setattr(embedded_columns, "load_model", lambda name, dtype: load_model(str(tiny_model), dtype))
    return tiny_model


def test_the_columns_are_the_unquantized_ones_and_the_name_stays(embedded, tmp_path):
    config = PacaConfig(r=2, target_modules="all-linear", column_source=SMOLLM2)
    with columns_of_embedded(config) as given:
        model = get_peft_model(load_model(str(embedded), "float32", "nf4"), given)
    plain = load_model(str(embedded), "float32")
    for name, layer in layers(model).items():
        indices = layer.paca_indices["default"]
        wanted = plain.get_submodule(name).weight[:, indices]
        assert torch.equal(layer.paca_columns["default"], wanted)
        assert not torch.equal(layer.pretrained_columns(indices).t(), wanted)  # the control: NF4 has rounded
    assert model.peft_config["default"].column_source == SMOLLM2
    model.save_pretrained(tmp_path)
    assert f'"column_source": "{SMOLLM2}"' in (tmp_path / "adapter_config.json").read_text()


@pytest.mark.parametrize("source", [None, "a folder"])
def test_other_sources_are_left_alone(source):
    config = PacaConfig(r=2, column_source=source)
    with columns_of_embedded(config) as given:
        assert given is config
        assert given.column_source == source


def test_the_name_stays_when_the_adapter_cannot_be_made(embedded):
    config = PacaConfig(r=2, column_source=SMOLLM2)
    with pytest.raises(RuntimeError, match="on the way"), columns_of_embedded(config):
        raise RuntimeError("on the way")
    assert config.column_source == SMOLLM2


def test_connections_chosen_by_data_start_unquantized_too(embedded, content, tmp_path):
    content["model"]["quantization"] = "nf4"
    content["method"] |= {"selection": "activation", "selection_batches": 2, "column_source": SMOLLM2}
    content["training"]["learning_rate"] = 0.0
    run(content, tmp_path)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    plain = load_model(str(embedded), "float32")
    name = "model.layers.1.mlp.down_proj"
    indices = saved[f"base_model.model.{name}.paca_indices"]
    columns = saved[f"base_model.model.{name}.paca_columns"]
    assert torch.equal(columns, plain.get_submodule(name).weight[:, indices])
