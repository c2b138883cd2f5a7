"""Adapter files: their format, what is refused, and that a refused load leaves everything as it was."""

import copy
import json
import warnings

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.toys import Toy, adapted, assert_resident, config, inputs, layers, train
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import paca
from paca import PacaConfig, PacaError
from paca.tuner.adapter_file import read_fingerprints

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@pytest.fixture
def saved(tmp_path):
    """A plain model, a trained adapter's folder, and its output."""
    plain, model = adapted()
    train(model)
    model.save_pretrained(tmp_path)
    return plain, tmp_path, model(inputs())


def assert_stored(model, folder):
    """The model has the connections and the updates of an adapter file."""
    stored = load_file(folder / WEIGHTS)
    for name, layer in layers(model).items():
        assert torch.equal(layer.paca_indices["default"], stored[f"{PREFIX}{name}.paca_indices"])
        delta = layer.paca_delta["default"]
        assert torch.equal(delta, stored[f"{PREFIX}{name}.paca_delta"].to(delta.dtype))
        assert delta.any()


def rewrite(folder, change):
    """Change the tensors of an adapter file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def snapshot(model):
    """Everything that a refused load might have touched."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: type(module) for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        sorted(getattr(model, "peft_config", {})),
    )


def assert_as_before(model, before):
    now = snapshot(model)
    assert now[1:] == before[1:]
    for name, value in before[0].items():
        assert torch.equal(now[0][name], value), name


# The format


def test_the_files_of_an_adapter(saved):
    _, folder, _ = saved
    tensors = load_file(folder / WEIGHTS)
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    assert shapes == {
        f"{PREFIX}one.paca_delta": ((12, 3), torch.float64),
        f"{PREFIX}one.paca_indices": ((3,), torch.int64),
        f"{PREFIX}two.paca_delta": ((10, 3), torch.float64),
        f"{PREFIX}two.paca_indices": ((3,), torch.int64),
    }
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        fingerprints = json.loads(file.metadata()["paca_fingerprint"])
    assert {key: len(values) for key, values in fingerprints.items()} == {
        f"{PREFIX}{layer}.paca_fingerprint": 8 for layer in ("one", "two")
    }
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["peft_type"], written["r"], written["paca_alpha"]) == ("PACA", 3, 3)
    assert sorted(written["target_modules"]) == ["one", "two"]
    assert not any(key.startswith("_") for key in written)


def test_what_is_saved_again_is_the_same_bytes(tmp_path):
    """safetensors writes entries of its metadata in any order."""
    _, model = adapted()
    train(model)
    files = set()
    for number in range(12):
        model.save_pretrained(tmp_path / str(number))
        files.add((tmp_path / str(number) / WEIGHTS).read_bytes())
    assert len(files) == 1
    assert read_fingerprints(str(tmp_path / "0" / WEIGHTS))


def test_a_configuration_comes_back(tmp_path):
    made = PacaConfig(r=4, paca_alpha=8, target_modules=["one"], rank_pattern={"two": 2}, random_seed=3, bias="all")
    made.save_pretrained(tmp_path)
    read = PeftConfig.from_pretrained(tmp_path)
    assert type(read) is PacaConfig
    assert read.to_dict() == made.to_dict()


def test_a_file_without_fingerprints_loads(saved):
    """As PEFT 0.22 writes it: updates and indices only."""
    plain, folder, wanted = saved
    rewrite(folder, lambda tensors: None)  # which keeps no metadata
    assert {key.rsplit(".", 1)[1] for key in load_file(folder / WEIGHTS)} == {"paca_delta", "paca_indices"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(model(inputs()), wanted, rtol=0, atol=1e-12)


def test_the_saved_indices_count_not_the_seed(saved):
    plain, folder, wanted = saved
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, "random_seed": 77}))
    model = PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(model(inputs()), wanted, rtol=0, atol=1e-12)


def test_transformers_loads_an_adapter_by_the_names_of_its_parameters(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    plain = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
    plain.save_pretrained(tmp_path / "base")
    options = PacaConfig(r=3, target_modules="all-linear", init_weights=False)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), options).eval()
    assert {name for name, _ in model.named_parameters()} <= model.state_dict().keys()
    model.save_pretrained(tmp_path / "adapter")

    ids = torch.arange(6)[None]
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    info = loaded.load_adapter(str(tmp_path / "adapter"))
    assert read_fingerprints(str(tmp_path / "adapter" / WEIGHTS))
    assert not info.unexpected_keys
    assert not torch.equal(plain.eval()(ids).logits, model(ids).logits)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-6)


# What is refused


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def scramble(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def empty(path):
    path.write_bytes(b"")


DAMAGE = {"cut short": cut, "no header": scramble, "empty": empty}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_before_the_model_is_touched(saved, damage):
    plain, folder, _ = saved
    damage(folder / WEIGHTS)
    size = (folder / WEIGHTS).stat().st_size
    before = snapshot(plain)
    with pytest.raises(PacaError, match=rf"{WEIGHTS} \({size:,} bytes\) is no whole safetensors file"):
        PeftModel.from_pretrained(plain, folder)
    assert_as_before(plain, before)

    _, model = adapted(random_seed=5)
    before, y = snapshot(model), model(inputs())
    with pytest.raises(PacaError, match="cut short or damaged; copy, download or save the adapter again"):
        model.load_adapter(folder, "second")
    assert_as_before(model, before)
    assert torch.equal(model(inputs()), y)


def change(key, make):
    def apply(tensors):
        tensors[PREFIX + key] = make(tensors[PREFIX + key])

    return apply


def drop(key):
    return lambda tensors: tensors.pop(PREFIX + key)


def ones(*shape):
    return lambda old: torch.ones(shape, dtype=old.dtype)


def numbers(*values):
    return lambda old: torch.tensor(values, dtype=old.dtype)


MISFITS = {
    "another rank": (change("one.paca_delta", ones(12, 4)), r"one: paca_delta is \(12, 4\).* needs \(12, 3\)"),
    "another length": (change("two.paca_delta", ones(11, 3)), r"two: paca_delta is \(11, 3\).* needs \(10, 3\)"),
    "more indices": (change("one.paca_indices", numbers(1, 2, 3, 4)), r"paca_indices is \(4,\) .* needs \(3,\)"),
    "beyond": (change("one.paca_indices", numbers(1, 2, 10)), r"reach from 1 to 10, .* connections 0 to 9"),
    "negative": (change("two.paca_indices", numbers(-1, 2, 3)), r"reach from -1 to 3, .* connections 0 to 11"),
    "twice": (change("one.paca_indices", numbers(2, 2, 3)), r"one: paca_indices are not ascending, or name a con"),
    "not ascending": (change("one.paca_indices", numbers(3, 2, 1)), r"one: paca_indices are not ascending"),
    "floating": (change("one.paca_indices", torch.Tensor.float), r"one: paca_indices are torch.float32, not integers"),
    "no update": (drop("two.paca_delta"), r"two: the file has no paca_delta"),
    "no indices": (drop("one.paca_indices"), r"one: the file has no paca_indices"),
}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(("misfit", "message"), MISFITS.values(), ids=MISFITS)
def test_an_adapter_that_does_not_fit(saved, misfit, message, low_cpu_mem_usage):
    plain, folder, _ = saved
    rewrite(folder, misfit)
    before = snapshot(plain)
    with pytest.raises(PacaError, match=rf"Adapter 'default' does not fit this model:\n.*{message}"):
        PeftModel.from_pretrained(plain, folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert_as_before(plain, before)
    assert get_peft_model(plain, config())(inputs()).shape == (6, 4)

    _, model = adapted(random_seed=5)
    before, y = snapshot(model), model(inputs())
    with pytest.raises(PacaError, match=message):
        model.load_adapter(folder, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    assert_as_before(model, before)
    assert torch.equal(model(inputs()), y)
    assert_resident(model)


def test_another_model_s_adapter_lists_every_problem(saved):
    _, folder, _ = saved
    other = Toy()
    other.one, other.two = nn.Linear(10, 13), nn.Linear(13, 10)
    with pytest.raises(PacaError) as error:
        PeftModel.from_pretrained(other.double(), folder)
    assert str(error.value).splitlines() == [
        "Adapter 'default' does not fit this model:",
        "  base_model.model.one: paca_delta is (12, 3) in the file, this model needs (13, 3).",
    ]
    assert type(other.one) is nn.Linear


@pytest.mark.parametrize(
    "way",
    [
        lambda model, folder: model.load_adapter(folder, "default"),
        lambda model, folder: set_peft_model_state_dict(model, load_file(folder / WEIGHTS)),
    ],
    ids=["load_adapter", "set_peft_model_state_dict"],
)
def test_a_refused_load_over_a_trained_adapter_keeps_it(saved, way):
    """The clean-up after a failed load removed the adapter, though it had been there, and trained, before."""
    _, folder, _ = saved
    _, model = adapted(r=4)
    train(model)
    before, y = snapshot(model), model(inputs())
    with pytest.raises(PacaError, match="does not fit this model"):
        way(model, folder)
    assert_as_before(model, before)
    assert torch.equal(model(inputs()), y)


def test_a_trained_adapter_whose_configuration_was_read_is_kept_too(saved):
    plain, folder, _ = saved
    settings = PacaConfig.from_pretrained(folder)
    settings.init_weights, settings.inference_mode = True, False
    model = get_peft_model(plain, settings)
    train(model)
    y = model(inputs())
    bad = {key: value for key, value in get_peft_model_state_dict(model).items() if "two.paca_delta" not in key}
    with pytest.raises(PacaError, match="the file has no paca_delta"):
        set_peft_model_state_dict(model, bad)
    assert sorted(layers(model)) == ["one", "two"]
    assert torch.equal(model(inputs()), y)


# Fingerprints: was it trained on these columns?


def test_other_pretrained_columns_warn_and_name_the_layers(saved):
    plain, folder, _ = saved
    with torch.no_grad():
        plain.two.weight.copy_(torch.randn(10, 12))
    with pytest.warns(UserWarning, match=r"'default' was trained on other pretrained weights .* in 1 layers: two\."):
        PeftModel.from_pretrained(plain, folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounded_pretrained_columns_do_not_warn(saved, dtype):
    plain, folder, _ = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PeftModel.from_pretrained(plain.to(dtype), folder)
    assert_stored(model, folder)


def test_columns_that_the_adapter_does_not_touch_do_not_warn(saved):
    plain, folder, _ = saved
    chosen = load_file(folder / WEIGHTS)[f"{PREFIX}one.paca_indices"].tolist()
    with torch.no_grad():
        plain.one.weight[:, [i for i in range(10) if i not in chosen]] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PeftModel.from_pretrained(plain, folder)
    assert_stored(model, folder)


@pytest.mark.parametrize("state", ["shown", "merged", "disabled"])
def test_the_fingerprint_is_of_the_pretrained_columns(saved, state):
    """Not of what the weight holds at the moment of saving."""
    plain, folder, _ = saved
    wanted = {**load_file(folder / WEIGHTS), **read_fingerprints(str(folder / WEIGHTS))}
    assert f"{PREFIX}one.paca_fingerprint" in wanted
    model = PeftModel.from_pretrained(copy.deepcopy(plain), folder)
    model(inputs())
    if state == "merged":
        model.merge_adapter()
    if state == "disabled":
        model.base_model.disable_adapter_layers()
    model.save_pretrained(folder / "again")
    got = {**load_file(folder / "again" / WEIGHTS), **read_fingerprints(str(folder / "again" / WEIGHTS))}
    assert got.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(got[key], wanted[key]), key


def test_fingerprints_that_were_saved_as_tensors_are_compared_as_well(saved):
    plain, folder, _ = saved
    fingerprints = read_fingerprints(str(folder / WEIGHTS))
    rewrite(folder, lambda tensors: tensors.update(fingerprints))
    assert not read_fingerprints(str(folder / WEIGHTS))
    with torch.no_grad():
        plain.two.weight.copy_(torch.randn(10, 12))
    with pytest.warns(UserWarning, match=r"in 1 layers: two\."):
        PeftModel.from_pretrained(plain, folder)


def test_a_state_dict_holds_what_the_file_holds(saved):
    """It held fingerprints as well, which no layer has: whatever loaded it reported them as unexpected."""
    plain, folder, _ = saved
    model = PeftModel.from_pretrained(plain, folder)
    state = get_peft_model_state_dict(model)
    assert state.keys() == load_file(folder / WEIGHTS).keys()
    assert not set_peft_model_state_dict(model, state).unexpected_keys


@pytest.mark.parametrize("moved", [False, True])
def test_fingerprints_are_written_into_the_file_of_their_state_dict_only(saved, tmp_path, moved):
    """A configuration that is saved alone, after a state dict was taken, may meet the file of another adapter."""
    plain, folder, _ = saved
    model = PeftModel.from_pretrained(plain, folder)
    state = get_peft_model_state_dict(model)
    if moved:
        state = {key: value.flip(0) if "paca_indices" in key else value for key, value in state.items()}
    (tmp_path / "other").mkdir()
    save_file(state, tmp_path / "other" / WEIGHTS)
    model.peft_config["default"].save_pretrained(tmp_path / "other")
    assert bool(read_fingerprints(str(tmp_path / "other" / WEIGHTS))) is not moved
    save_file(state, tmp_path / "other" / WEIGHTS)
    model.peft_config["default"].save_pretrained(tmp_path / "other")
    assert not read_fingerprints(str(tmp_path / "other" / WEIGHTS))


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_that_are_loaded_into_an_adapter_that_is_there_can_be_compared(saved, scaled):
    """PEFT hands their tensors over, and not the metadata of the file."""
    plain, folder, _ = saved
    if scaled:
        with torch.no_grad():
            plain.two.weight.mul_(1.5)
    model = get_peft_model(plain, config(random_seed=5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_adapter(folder, "default")
        assert not caught
        paca.check_base_model(model, folder)
    found = [str(warning.message) for warning in caught]
    assert len(found) == scaled
    assert all(
        "was trained on other pretrained weights than this model's, in 1 layers: two." in text for text in found
    )


def without_fingerprints(folder):
    rewrite(folder, lambda tensors: None)


def no_file(folder):
    (folder / WEIGHTS).unlink()


UNCOMPARABLE = {
    "no fingerprints": (
        without_fingerprints,
        "default",
        r"no adapter_model.safetensors with fingerprints.* Save it with",
    ),
    "no file": (no_file, "default", "no adapter_model.safetensors with fingerprints"),
    "another name": (lambda folder: None, "second", r"No layer with an adapter 'second'.* Load the adapter first"),
}


@pytest.mark.parametrize(("change", "name", "message"), UNCOMPARABLE.values(), ids=UNCOMPARABLE)
def test_what_cannot_be_compared_is_said(saved, change, name, message):
    plain, folder, _ = saved
    model = PeftModel.from_pretrained(plain, folder)
    change(folder)
    with pytest.raises(PacaError, match=message):
        paca.check_base_model(model, folder, name)


def test_a_model_that_lacks_the_connections_is_refused(saved):
    _, folder, _ = saved
    other = Toy()
    other.one = nn.Linear(4, 12)
    model = get_peft_model(other.double(), config())
    with pytest.raises(
        PacaError, match=r"does not fit this model:\n.*one: paca_indices reach from .* connections 0 to 3"
    ):
        paca.check_base_model(model, folder)


def test_metadata_that_are_no_fingerprints_are_refused(saved):
    plain, folder, _ = saved
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"paca_fingerprint": "no JSON"})
    before = snapshot(plain)
    with pytest.raises(PacaError, match=r"metadata 'paca_fingerprint' of .* can't be read"):
        PeftModel.from_pretrained(plain, folder)
    assert_as_before(plain, before)
