"""What a killed evaluation finds again."""

import json

import pytest

from paca import PacaError
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.work_folder import finish, open_work


def test_results_are_found_again_without_the_line_that_was_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.add("a", [-0.1234567890123456, True])
    journal.add("b", "Grüße \ud800\n")
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        again = Journal(path)
        assert len(again) == whole[:length].count(b"\n")
        again.add("c", 1)
        assert Journal(path)["c"] == 1
    path.write_bytes(whole)
    again = Journal(path)
    assert again["a"] == [-0.1234567890123456, True]
    assert again["b"] == "Grüße \ud800\n"
    assert "c" not in again


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"key": 1}', b"\xff", b"[" * 100_000, b'{"key": [], "value": 1}'])
def test_a_line_that_nobody_wrote_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    Journal(path).add("a", 1)
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(PacaError, match=r"a.jsonl:2 is no line that an evaluation wrote"):
        Journal(path)


def test_a_folder_is_gone_on_with_only_under_the_same_settings(tmp_path):
    folder = tmp_path / "mmlu"
    settings = {"limit": 5, "model": {"base": "x", "shape": (1, 2)}}
    assert open_work(folder, settings) is None
    (folder / "answers.jsonl").write_text("")
    assert open_work(folder, settings) is None
    assert (folder / "answers.jsonl").exists()
    with pytest.raises(PacaError, match=r"started with other settings: limit was 5, now 6. Add --overwrite"):
        open_work(folder, {**settings, "limit": 6})
    finish(folder, {"acc": 1.0})
    assert open_work(folder, settings) == {"acc": 1.0}
    assert open_work(folder, settings, overwrite=True) is None
    assert not (folder / "answers.jsonl").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(PacaError, match=r"holds files that no evaluation wrote \(mine.txt"):
            open_work(tmp_path, {}, overwrite)
    with pytest.raises(PacaError, match="is not a folder; name one"):
        open_work(tmp_path / "mine.txt", {})


@pytest.mark.parametrize("name", ["settings.json", "result.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    open_work(tmp_path / "x", {})
    finish(tmp_path / "x", json.loads("{}"))
    (tmp_path / "x" / name).write_text("{")
    with pytest.raises(PacaError, match=rf"{name} is not what an evaluation wrote; add --overwrite"):
        open_work(tmp_path / "x", {})
