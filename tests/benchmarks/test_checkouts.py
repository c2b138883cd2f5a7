"""The benchmark of two checkouts runs each with its own modules; a checkout beside itself stands for the other."""

import json
import shutil

import pytest
from tests.paths import ROOT

import checkouts


@pytest.mark.slow
def test_steps_of_two_checkouts_take_turns(tmp_path, capsys):
    other = tmp_path / "other"
    for folder in ("benchmarks", "src"):
        shutil.copytree(ROOT / folder, other / folder)
    words = ["--config", "tiny", "--steps", "2", "--repeats", "1", "--settings", "8:2", "--methods", "paca"]
    assert checkouts.main([str(other), *words, "--json", str(tmp_path / "figures.json")]) == 0
    (setting,) = json.loads((tmp_path / "figures.json").read_text())["settings"]
    (repeat,) = setting["repeats"]
    assert all(repeat[name]["paca"] > 0 for name in ("this", "other"))
    assert capsys.readouterr().out.count("| 8 | 2 | paca |") == 2


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        checkouts.main([str(tmp_path), "--config", "tiny"])
