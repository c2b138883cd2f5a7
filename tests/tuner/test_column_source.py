"""Columns out of the unquantized checkpoint: which are read, how they travel, what is refused."""

import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.toys import in_named_precision, layers, tiny_llama_config, trained
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

import paca
from paca import PacaConfig
from paca.tuner import column_source
from paca.tuner.column_source import ColumnSource, runs

IDS = torch.arange(3, 15)[None]
TARGETS = ["q_proj", "down_proj"]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config(tie_word_embeddings=False))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    llama().save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def quantized(folder, **options):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)
    return in_named_precision(loaded)


def config(**options):
    return PacaConfig(**{"r": 4, "target_modules": TARGETS, "random_seed": 0, **options})


def model_with(folder, **options):
    return get_peft_model(quantized(folder), config(column_source=str(folder), **options)).eval()


def assert_columns(model, folder):
    """The adapted matrices hold the checkpoint's columns, and the dequantized ones elsewhere."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert len(layers(model)) == 4
    for name, layer in layers(model).items():
        exact, indices = plain.get_submodule(name).weight, layer.paca_indices["default"]
        matrix, rounded = layer.adapted_matrix(torch.float32), layer.columns.dequantize()
        assert torch.equal(matrix[:, indices], exact[:, indices])
        assert not torch.equal(rounded[:, indices], exact[:, indices])
        others = torch.ones(layer.in_features, dtype=torch.bool).index_fill(0, indices, False)
        assert torch.equal(matrix[:, others], rounded[:, others])


def test_one_file_and_several(checkpoint, shards):
    assert_columns(model_with(checkpoint), checkpoint)
    assert_columns(model_with(shards), shards)


def test_never_a_whole_weight(checkpoint, monkeypatch):
    """Only slices of at most r columns are asked for."""
    seen = []

    class Watched:
        def __init__(self, *args, **kwargs):
            self.file = safe_open(*args, **kwargs)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *args):
            return self.file.__exit__(*args)

        def keys(self):
            return self.opened.keys()

        def get_slice(self, name):
            return Slice(self.opened.get_slice(name))

    class Slice:
        def __init__(self, weight):
            self.weight = weight

        def get_shape(self):
            return self.weight.get_shape()

        def __getitem__(self, item):
            seen.append(self.weight[item].shape[1])
            return self.weight[item]

    safe_open = column_source.safe_open
    monkeypatch.setattr(column_source, "safe_open", Watched)
    assert_columns(model_with(checkpoint), checkpoint)
    assert sum(seen) == 4 * 4
    assert max(seen) <= 4


def test_gradients_and_training(checkpoint):
    model = model_with(checkpoint)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for name, layer in layers(model).items():
        plain.get_submodule(name).weight.data = layer.adapted_matrix(torch.float32)
    for name, module in model.base_model.model.named_modules():
        if type(module).__name__ == "Linear4bit" and not name.endswith("base_layer"):
            plain.get_submodule(name).weight.data = paca.tuner.layers.quantized.dequantized_matrix(module)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
    model(IDS, labels=IDS).loss.backward()
    plain.requires_grad_(True)
    plain(IDS, labels=IDS).loss.backward()
    for name, layer in layers(model).items():
        wanted = plain.get_submodule(name).weight.grad[:, layer.paca_indices["default"]]
        torch.testing.assert_close(layer.paca_delta["default"].grad, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_the_columns_travel_with_the_adapter(checkpoint, tmp_path, low_cpu_mem_usage):
    """Loading needs no checkpoint: its folder is gone by then."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    model = get_peft_model(quantized(checkpoint), config(column_source=str(source))).eval()
    train(model)
    wanted = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(source)
    loaded = PeftModel.from_pretrained(
        quantized(checkpoint), tmp_path / "adapter", low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(loaded.eval()(IDS).logits, wanted)
    loaded.load_adapter(tmp_path / "adapter", "again")
    loaded.set_adapter("again")
    assert torch.equal(loaded(IDS).logits, wanted)


def train(model):
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    for _ in range(2):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_adapter_is_exact_on_the_unquantized_model(checkpoint, tmp_path, recwarn):
    model = model_with(checkpoint)
    train(model)
    model.save_pretrained(tmp_path)
    ordinary = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(ordinary, tmp_path)
    for name, layer in layers(loaded).items():
        indices = layer.paca_indices["default"]
        shown = layer.columns.would_be(layer.base_weight, layer.updates(["default"])).t()
        assert torch.equal(shown, layers(model)[name].adapted_matrix(torch.float32)[:, indices])
    assert not [warning for warning in recwarn if "other pretrained weights" in str(warning.message)]


def test_several_adapters_with_and_without_a_source(checkpoint):
    model = model_with(checkpoint)
    model.add_adapter("other", config(random_seed=1, init_weights=False))
    wanted = model(IDS).logits
    model.set_adapter("other")
    other = model(IDS).logits
    assert not torch.allclose(other, wanted)
    mixed = model(IDS.repeat(2, 1), adapter_names=["default", "other"]).logits
    torch.testing.assert_close(mixed, torch.cat([wanted, other]), rtol=1e-3, atol=1e-4)
    model.delete_adapter("default")
    assert all(not layer.paca_columns for layer in layers(model).values())
    assert torch.equal(model(IDS).logits, other)


def test_merging_keeps_the_better_columns(checkpoint):
    model = model_with(checkpoint)
    wanted = model(IDS).logits
    merged = model.merge_and_dequantize(torch.float32)
    torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-5)


def damaged(checkpoint, folder, change):
    """A copy of the checkpoint with changed tensors."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


NAME = "model.layers.1.mlp.down_proj.weight"
DAMAGES = {
    "absent": (lambda tensors: tensors.pop(NAME), rf"has no tensor '{NAME}'; it has for example .*down_proj"),
    "shape": (
        lambda tensors: tensors.update({NAME: torch.zeros(64, 12)}),
        rf"{NAME} is \(64, 12\) there, the model's .* is \(64, 128\)",
    ),
    "values": (lambda tensors: tensors.update({NAME: torch.randn(64, 128)}), rf"{NAME} differs from the model's by"),
    "NaN": (
        lambda tensors: tensors.update({NAME: torch.full((64, 128), float("nan"))}),
        rf"{NAME} differs from the model's by",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_of_another_model_is_refused_and_the_model_is_as_before(checkpoint, tmp_path, change, message):
    source = damaged(checkpoint, tmp_path, change)
    base = quantized(checkpoint)
    before, wanted = {name: type(module) for name, module in base.named_modules()}, base(IDS).logits
    with pytest.raises(paca.PacaError, match=message):
        get_peft_model(base, config(column_source=str(source)))
    assert {name: type(module) for name, module in base.named_modules()} == before
    assert torch.equal(base(IDS).logits, wanted)
    model = get_peft_model(base, config())
    with pytest.raises(paca.PacaError, match=message):
        model.add_adapter("other", config(column_source=str(source)))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(IDS).logits, wanted)


def test_a_checkpoint_saved_without_the_prefix(checkpoint, tmp_path):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    source = damaged(checkpoint, tmp_path, strip)
    assert_columns(get_peft_model(quantized(checkpoint), config(column_source=str(source))), checkpoint)


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(paca.PacaError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        ColumnSource(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard-1.safetensors"}}))
    with pytest.raises(paca.PacaError, match=r"names shard-1\.safetensors, which is not there"):
        ColumnSource(str(tmp_path))
    with pytest.raises(
        paca.PacaError, match=r"neither a folder nor a repository that can be reached|is no checkpoint"
    ):
        ColumnSource("nobody/nothing-of-this-name")


def test_it_is_refused_before_connections_are_chosen_by_data(checkpoint, tmp_path):
    with pytest.raises(paca.PacaError, match="is no checkpoint"):
        get_peft_model(quantized(checkpoint), config(column_source=str(tmp_path), selection="activation"))


def test_a_plain_base_ignores_the_source_and_says_so(checkpoint):
    with pytest.warns(UserWarning, match="is ignored: no targeted layer is quantized"):
        get_peft_model(llama(), config(column_source=str(checkpoint)))


def test_a_source_that_is_no_name():
    with pytest.raises(paca.PacaError, match="column_source=3 is not the name"):
        config(column_source=3)


def test_runs():
    assert runs([]) == []
    assert runs([1, 2, 3, 7, 9, 10]) == [(1, 4), (7, 8), (9, 11)]
