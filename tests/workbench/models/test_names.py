"""Which words name a model that is there."""

from paca.workbench.models.embedded import SMOLLM2
from paca.workbench.models.names import names_model


def test_folders_with_a_model_or_an_adapter_name_one(tmp_path):
    for name, file in {
        "model": "config.json",
        "adapter": "adapter_config.json",
        "run": "adapter/adapter_config.json",
    }.items():
        path = tmp_path / name / file
        path.parent.mkdir(parents=True)
        path.touch()
        assert names_model(str(tmp_path / name))
    assert names_model(SMOLLM2)


def test_other_folders_and_words_name_none(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "config.json").touch()
    for word in (tmp_path / "data", tmp_path / "config.json", tmp_path / "nosuch", "paca"):
        assert not names_model(str(word))
