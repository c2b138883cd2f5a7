"""An unknown key of a recipe names the one that is meant."""

import dataclasses

import pytest
from trl import SFTConfig

from paca.workbench.base.near_keys import _SYNONYMS, near_key
from paca.workbench.methods.registry import known_methods
from paca.workbench.recipe.recipe import DataSection, ImagesSection, ModelSection, Recipe

pytestmark = pytest.mark.road("problem-list")


def fields(cls):
    return [spec.name for spec in dataclasses.fields(cls)]


KNOWN = {
    "": fields(Recipe),
    "training": fields(SFTConfig),
    "method": ["name", *fields(known_methods()["paca"])],
    "model": fields(ModelSection),
    "data": fields(DataSection),
    "images": fields(ImagesSection),
}
LORA = {"method": ["name", *fields(known_methods()["lora"])]}


@pytest.mark.parametrize(
    ("where", "key", "meant"),
    [
        ("training", "lr", "'learning_rate'"),
        ("training", "epochs", "'num_train_epochs'"),
        ("training", "batch_size", "'per_device_train_batch_size'"),
        ("training", "max-seq-length", "'max_length'"),
        ("training", "max_step", "'max_steps'"),
        ("training", "evaluation_strategy", "'eval_strategy'"),
        ("training", "rank", "method.r"),
        ("training", "dtype", "model.dtype"),
        ("method", "rank", "'r'"),
        ("method", "alpha", "'paca_alpha'"),
        ("method", "lr", "training.learning_rate"),
        ("method", "target_module", "'target_modules'"),
        ("model", "model_name_or_path", "'name'"),
        ("model", "load_in_4bit", "'quantization'"),
        ("model", "max_length", "training.max_length"),
        ("data", "dataset", "'train'"),
        ("data", "validation", "'eval'"),
        ("data", "batch_size", "training.per_device_train_batch_size"),
        ("images", "resolution", "'size'"),
        ("", "learning_rate", "training.learning_rate"),
        ("", "base_model", "model.name"),
        ("", "modle", "'model'"),
        ("", "lora_r", "method.r"),
        ("", "output", "'output_dir'"),
    ],
)
def test_what_is_meant(where, key, meant):
    assert near_key(where, key, KNOWN[where]) == f"; did you mean {meant}?"


@pytest.mark.parametrize("where", KNOWN)
@pytest.mark.parametrize("key", ["x", "foo", "wandb_project", "deepspeed_config", "ü", "", "a" * 100])
def test_every_unknown_key_gets_names(where, key):
    hint = near_key(where, key, KNOWN[where])
    assert hint.startswith(("; did you mean ", "; known: ", "; among the known: "))
    assert any(name in hint for name in KNOWN[where])


def test_a_word_means_what_the_method_has():
    assert near_key("method", "alpha", LORA["method"]) == "; did you mean 'lora_alpha'?"
    assert near_key("method", "alpha", ["name"]).startswith("; known: name")


def test_every_meaning_is_a_key():
    for meaning in _SYNONYMS:
        section, _, name = meaning.rpartition(".")
        assert name in KNOWN[section] + (LORA["method"] if section == "method" else [])
