import argparse
import json
import re

import pytest
from tests.workbench.compare.inside import Inside
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.base.options import size
from paca.workbench.cli.main import main, parse
from paca.workbench.compare import worker
from paca.workbench.compare.choice import choose_methods
from paca.workbench.compare.rates import read_rates
from paca.workbench.methods.catalogue import FLOORS


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "SubprocessWorker", Inside)
    content = recipe_content(save_model(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "run")
    return str(write_recipe(tmp_path / "recipe.yaml", content))


def test_a_comparison_prints_its_table_and_where_the_report_is(recipe_file, tmp_path, capsys):
    words = [
        "compare",
        recipe_file,
        "training.max_steps=2",
        "--methods",
        "paca,lora",
        "--rounds",
        "1",
        "--points",
        "1",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert re.search(r"^ paca +4 +[\d,]+ ", said.out, re.MULTILINE)
    assert max(map(len, said.out.splitlines()[:-1])) <= 80
    assert f"report: {tmp_path / 'run-compare'}" in said.out
    assert "lora: seed 3" in said.err
    assert "--" not in said.err, "names of files are nothing to read"
    assert main([*words, "--operations"]) == 0
    said = capsys.readouterr().out
    assert said.split()[:9] == ["Operations", "of", "a", "step", "method", "forward", "GFLOP", "backward", "GFLOP"]
    assert re.search(r"^ paca +\d", said, re.MULTILINE)
    assert "held-out" not in said
    results = json.loads((tmp_path / "run-compare" / "results.json").read_text())
    assert all(row["operations"]["forward"] > 0 for row in results["methods"])
    trained = [row for row in results["methods"] if row["method"] not in FLOORS]
    assert all(row["loss"] for row in trained), "what was measured before is still there"
    write_text(tmp_path / "text.txt", repeats=39)
    (tmp_path / "text.txt").open("a").write("The end.")
    assert main([*words, "--methods", "paca,lora,dora"]) == 2
    said = capsys.readouterr().err
    assert "holds a comparison of another recipe or other data: data.training rows.digest was" in said


@pytest.mark.road("comparisons")
@pytest.mark.parametrize(
    ("experiment", "heading"),
    [
        ("--operations", "Operations of a step"),
        ("--throughput", "Throughput as the batch grows"),
        ("--max-seq", "Longest sequence"),
    ],
)
def test_an_experiment_prints_what_it_found(recipe_file, capsys, experiment, heading, tmp_path):
    words = ["--methods", "paca", "--memory-limit", "2MB", "--rounds", "1"]
    assert main(["compare", recipe_file, experiment, *words]) == 0
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    assert lines[0] == heading
    assert lines[1].startswith("method ")
    assert {line.split()[0] for line in lines[3:-1]} == {"frozen", "frozen-lean", "paca"}
    assert "steps" not in (tmp_path / "run-compare" / "report.md").read_text()


@pytest.mark.parametrize("methods", [["paca,lora"], ["paca", "lora"], ["paca,", "lora"], ["paca, lora"]])
@pytest.mark.parametrize("rates", [["lora=1e-3,2e-3", "paca=3e-3,5e-3"], ["lora=1e-3", "2e-3,paca=3e-3,", "5e-3"]])
def test_lists_are_separated_by_commas_and_by_spaces(methods, rates):
    words = [
        "compare",
        "r",
        "seed=4",
        "--methods",
        *methods,
        "training.max_steps=3",
        "--rates",
        *rates,
        "output_dir=o",
    ]
    arguments = parse(words)
    labels = [entry.label for entry in choose_methods(",".join(arguments.methods))]
    assert labels == ["frozen", "frozen-lean", "paca", "lora"]
    assert read_rates(arguments.rates, labels) == {"lora": [1e-3, 2e-3], "paca": [3e-3, 5e-3]}
    assert arguments.overrides == ["seed=4", "training.max_steps=3", "output_dir=o"]


def test_where_every_method_fails_the_status_is_1(recipe_file, capsys):
    assert main(["compare", recipe_file, "--methods", "paca", "--memory-limit", "1KB", "--rounds", "1"]) == 1
    assert "out of memory: a step needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "lorra"], "did you mean 'lora'"),
        (["--rates", "dora=1e-3"], "'dora' is not compared"),
        (["--unrelated", "nowhere.txt"], "can't be read"),
        (["--sweep", "-1"], "--sweep -1: expected how many rates"),
        (["trainin.max_steps=3"], "trainin"),
    ],
)
def test_mistakes_are_refused_with_what_to_type(recipe_file, words, message, capsys, tmp_path):
    assert main(["compare", recipe_file, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run-compare").exists()


def test_image_recipes_are_refused(capsys):
    assert main(["compare", "efficientnet-lite0-digits"]) == 2
    assert "takes recipes whose task is text" in capsys.readouterr().err


def test_sizes():
    assert (size("4GB"), size("512MiB"), size("1.5kb"), size("7")) == (4 * 10**9, 512 * 2**20, 1500, 7)
    for text in ("4XB", "GB", "0", "-1GB"):
        with pytest.raises(argparse.ArgumentTypeError, match="write for example 4GB"):
            size(text)
