"""The pages hold what the code does: messages, verbs, public names, versions, and recipes that can be read."""

import ast
import re

import pytest
import yaml
from tests.paths import ROOT

import paca
from paca.workbench.cli.main import VERBS
from paca.workbench.recipe.recipe import read_recipe

DOCS = ROOT / "docs"
# Headings of messages that other libraries write, and of things that are no message.
OF_OTHERS = ("ImportError: ", "KeyError: ", "AttributeError: ", "torch.OutOfMemoryError", "UNEXPECTED", "The loss ")


def literals():
    """Every text in the package, with an ellipsis for what is filled in."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def headings():
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return [line.removeprefix("### ").strip("`") for line in text.splitlines() if line.startswith("### ")]


@pytest.fixture(scope="module")
def said():
    return [re.sub(r"\s+", " ", text).replace("%s", "…") for text in literals()]


@pytest.mark.parametrize("heading", headings())
def test_the_messages_of_the_troubleshooting_page_are_ours_or_named_as_others(heading, said):
    if heading.startswith(OF_OTHERS):
        return
    pieces = [piece.strip(" .`'") for piece in re.split("…|'[a-z_]+'|^PacaConfig", heading)]
    pieces = [piece for piece in pieces if len(piece) > 8]
    assert pieces
    missing = [piece for piece in pieces if not any(piece in text for text in said)]
    assert not missing


def test_every_verb_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [verb.name for verb in VERBS if f"- paca {verb.name}: " not in menu] == []


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f": {page.name}\n" not in menu] == []


def test_the_api_page_lists_what_is_public_and_nothing_else():
    text = (DOCS / "api.md").read_text(encoding="utf-8").partition("## The workbench")[0]
    listed = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith("::: ")}
    assert listed == set(paca.__all__) - {"__version__"}


def recipes():
    for page in ("coming-from.md", "finetune.md"):
        for block in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL):
            if "output_dir:" in block:
                yield pytest.param(block, id=f"{page}: {block.splitlines()[0]}")


@pytest.mark.parametrize("content", recipes())
def test_a_recipe_on_a_page_is_valid(content, tmp_path):
    (tmp_path / "recipe.yaml").write_text(content)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.method.name == yaml.safe_load(content)["method"]["name"]


def test_the_table_of_versions_is_that_of_the_files():
    table = (DOCS / "versions.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    rows = {name: row for name, *row in cells}
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "torchao"):
        admitted = re.search(rf'"{name}>=([\d.]+)(?:,<([\d.]+))?"', project)
        low, high = admitted.groups()
        assert rows[name][0].startswith(f"≥ {low}"), name
        assert high is None or name == "torch" or rows[name][0].endswith(f"< {high}"), name
        assert rows[name][1] == pinned[name], name
        assert rows[name][2].startswith(low), name
