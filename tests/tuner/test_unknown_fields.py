"""A configuration written with another method's words: the error says PaCA's."""

import inspect
import json
import re

import pytest
from peft import LoraConfig, PeftConfig

from paca import PacaConfig, PacaError


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lora_alpha": 16}, "lora_alpha=16: PaCA's is `paca_alpha`"),
        ({"lora_dropout": 0.05}, "lora_dropout=0.05: PaCA computes nothing beside the layer"),
        ({"use_rslora": True}, "paca_alpha = alpha · √r"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': PaCA's is `init_weights`"),
        ({"use_dora": True}, "has no factors"),
        ({"rank": 8}, "PaCA's is `r`"),
        ({"lora_r": 8}, "lora_r=8: PaCA's is `r`."),
        ({"lora_rank": 8}, "PaCA's is `r`"),
        ({"lora_target_modules": "all-linear"}, "PaCA's is `target_modules`"),
        ({"lora_target": "all"}, "Did you mean `target_modules`?"),
        ({"eva_config": {}}, "data choose which they are: selection='activation' or 'gradient'"),
        ({"use_qalora": True}, "over quantized weights as they are"),
        ({"target_module": ["q_proj"]}, "Did you mean `target_modules`?"),
        ({"zzz": 1}, "Known are: "),
    ],
)
def test_the_word_to_use_instead(fields, expected):
    with pytest.raises(PacaError) as caught:
        PacaConfig(r=8, **fields)
    assert expected in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", sorted(set(LoraConfig.__dataclass_fields__) - set(PacaConfig.__dataclass_fields__)))
def test_every_field_of_lora_s_says_what_to_do(name):
    with pytest.raises(PacaError) as caught:
        PacaConfig(**{name: 1})
    assert re.search(
        r"leave it out|PaCA's |layers in the base model|is paca_alpha|as selection_indices|is \(docs/",
        str(caught.value),
    )
    assert "Known are" not in str(caught.value)


def test_all_of_them_at_once():
    with pytest.raises(PacaError) as caught:
        PacaConfig(lora_alpha=16, lora_dropout=0.1, use_dora=True)
    assert len(str(caught.value).splitlines()) == 4


def test_lora_only_biases():
    with pytest.raises(PacaError, match="'lora_only' is 'paca_only' here"):
        PacaConfig(bias="lora_only")


def test_a_later_version_s_file_is_read_without_its_new_fields(tmp_path):
    PacaConfig(r=3).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        assert PeftConfig.from_pretrained(tmp_path).r == 3


def test_the_constructor_still_shows_its_fields():
    parameters = inspect.signature(PacaConfig).parameters
    assert {"r", "paca_alpha", "random_seed"} <= set(parameters)
