"""Whole or not there."""

import json

import pytest

from paca.workbench.base.files import write_folder, write_json, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    folder = tmp_path / "adapter"
    write_folder(folder, lambda temporary: write_text(temporary / "a", "1"))

    def fail(temporary):
        write_text(temporary / "a", "2")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_folder(folder, fail)
    assert (folder / "a").read_text() == "1"


def test_a_folder_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    folder = tmp_path / "adapter"
    write_folder(folder, lambda temporary: write_text(temporary / "old", "1"))
    write_folder(folder, lambda temporary: write_text(temporary / "new", "2"))
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]
