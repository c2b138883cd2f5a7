"""A stranger's first half hour: every command of README, the quick start and the verbs' pages, run as it is printed.

Behind a command stands what makes it short, and a placeholder such as FOLDER has something in its place; nothing else
is changed. What was typed and what came of it is left in outputs/walk.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from tests.paths import ROOT
from tests.walk.pages import PAGES, Command, commands
from tests.walk.scene import prepare, yaml_block
from tests.workbench.compare.inside import Inside
from tests.workbench.evaluation.judge_server import Judge, serving

from paca.workbench.cli.main import VERBS, main
from paca.workbench.compare import worker

TRANSCRIPTS = ROOT / "outputs" / "walk"
SHORT = "training.max_steps=1 training.max_length=64 data.eval_limit=2"
SHORT_RUN = f"model.name=TINY {SHORT}"
SHORT_COMPARISON = (
    f"{SHORT_RUN} data.train=pairs.txt --unrelated short.txt --rounds 1 --points 1 --sweep-steps 1 --memory-limit 3MB"
)


@dataclass(frozen=True)
class Step:
    """What is done with a command.

    Args:
        more: Stands behind it.
        instead: Placeholders, and what is in their place.
        typed: What is typed into it.
        says: A pattern that its output has.
        status: Its exit status.
        why_not: Why it isn't run here.
    """

    more: str = ""
    instead: Mapping[str, str] = field(default_factory=dict)
    typed: str = ""
    says: str = ""
    status: int = 0
    why_not: str = ""


IMPROVED = r"(improved|worse|unchanged): held-out perplexity .*\nadapter: .*\nmerge: paca export "
SMALL = {"llama3-8b": "path/to/config.json", "llama3.1-70b-qpaca-oasst1": "qpaca.yaml"}
# The first whose pattern is found in a command.
STEPS = {
    "^pip ": Step(why_not="what is installed in which way is seen by `make wheel`"),
    "^make (test|compare)": Step(why_not="the tests themselves; and a page's own `paca compare`, below"),
    "^make demo": Step("--dry-run", says="1. Sets up(.|\n)*paca finetune smollm2-python-reference(.|\n)*paca chat "),
    "^python benchmarks/": Step(why_not="a measurement that takes hours; benchmarks have tests of their own"),
    "^transformers serve|^export ": Step(why_not="another program's; a judge is served here instead"),
    "exec -- (lm_eval|trl) ": Step(why_not="needs a data set of the Hub, or a config of that program's own"),
    "exec -- ": Step(says="PACA"),
    "finetune .*method.rank=8": Step(status=2, says="has 3 problems(.|\n)*did you mean 'learning_rate'"),
    "finetune smollm2-python-reference$": Step(SHORT, says=IMPROVED),
    "finetune smollm2-preference": Step(f"{SHORT_RUN} training.optim=adamw_torch", says="preference accuracy"),
    "finetune smollm2-mmlu": Step(f"{SHORT_RUN} training.max_length=256", says=IMPROVED),
    "finetune mine.yaml$": Step(f"{SHORT_RUN} --overwrite", says="preference accuracy"),
    "^paca finetune": Step(SHORT_RUN, says=IMPROVED),
    "^paca doctor": Step(f"{SHORT} training.max_length=512", says="ok  a gradient reaches all 210 adapted layers"),
    "data chat.yaml": Step(says="training sequences with"),
    "data mine.yaml": Step("model.name=TINY", says="chosen 1 of(.|\n)*rejected 1 of"),
    "^paca data": Step(says="tokens per row"),
    "^paca plan .*--json": Step("--seq 64", says='"by_category": '),
    "^paca plan": Step("--seq 64", SMALL, says="peak of a training step, GiB(.|\n)*operations of a step"),
    "^paca select": Step(f"{SHORT_RUN} method.selection_batches=1", says="train these: paca finetune "),
    "compare RECIPE": Step(SHORT_COMPARISON, {"RECIPE": "smollm2-python-reference"}, says="report: .*report.html"),
    "compare my-recipe": Step(f"{SHORT_COMPARISON} --sweep 2 --seeds 1", says="what was learned(.|\n)*report.html"),
    "^paca compare": Step(SHORT_COMPARISON, says="what was learned(.|\n)*report: .*report.html"),
    "eval .*mmlu": Step("--limit 1 --shots 0", says=r"mmlu: .*eval/mmlu/result.json\ntask +questions +acc"),
    "eval .*perplexity": Step("--limit 1", says=r"perplexity \d"),
    "eval .*preference": Step("--limit 1", says=r"(preference accuracy(.|\n)*){2}"),
    "eval .*mt-bench": Step(
        "--limit 1 --max-new-tokens 4 --overwrite",
        {"https://…/v1": "JUDGE", "http://localhost:8000/v1": "JUDGE"},
        says="average +7",
    ),
    r"^printf .*\| paca chat": Step("--max-new-tokens 8", says="The capital of France is"),
    "chat outputs/instruct": Step(
        "--max-new-tokens 4", typed="Why is the sky blue?\n/adapter preferred\n/again\n", says=r"\(preferred\)"
    ),
    "^paca chat": Step("--max-new-tokens 4", typed="Hello.\n/adapter off\n/again\n", says=r"\(adapter off\)"),
    "^paca export": Step(says="verified: logits differ by (.|\n)*merged: "),
    "recipes show": Step(instead={"NAME": "smollm2-python-reference"}),
    "^paca recipes$": Step(says="smollm2-python-reference  "),
}
# What other programs say of their own affairs.
OF_OTHERS = "not a git repository|is an Enum subclass|gemm_4bit_forward|de-quantizing"
# What lies there before the first command of a page.
RECIPES = {"docs/preference.md": yaml_block("docs/preference.md")}
BEFORE = {
    "docs/vision.md": "efficientnet-lite0-digits training.max_steps=1 data.eval_limit=8 --output outputs/photos",
}


def step_of(command):
    found = [step for pattern, step in STEPS.items() if re.search(pattern, command.text)]
    assert found, f"{command.page}:{command.line}: nothing says how to run {command.text!r}"
    return found[0]


def is_synopsis(command):
    """Whether a line says what may be typed, and is nothing to type."""
    return command.text.startswith("paca ") and (" [" in command.text or command.text.endswith(" COMMAND"))


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """The folder, and in it the runs that pages speak of: one run of a tiny model, under several names."""
    here = prepare(tmp_path_factory.mktemp("walk"))
    tiny, mine = here.parent / "tiny" / "model", here / "outputs" / "mine"
    recipe, data = str(here / "my-recipe.yaml"), f"data.train={here / 'pairs.txt'}"
    words = [f"model.name={tiny}", data, *SHORT.split(), "--output", str(mine), "--no-doctor"]
    assert main(["finetune", recipe, *words]) == 0
    for name in ("first", "second", "instruct", "preferred"):
        shutil.copytree(mine, here / "outputs" / name)
    return here


@pytest.fixture
def here(scene, tmp_path, monkeypatch):
    """A copy of it, as the working folder, with `paca` and Python on the path."""
    shutil.copytree(scene.parent, tmp_path / "walk")
    place = tmp_path / "walk" / "here"
    monkeypatch.chdir(place)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "paca").write_text(f'#!/bin/sh\nexec {sys.executable} -m paca.workbench.cli "$@"\n')
    (programs / "paca").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.path.dirname(sys.executable), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("TQDM_DISABLE", "")  # paca compare sets it
    monkeypatch.setattr(worker, "SubprocessWorker", Inside)
    return place


def typed_text(command, step, here, judge):
    """What is typed in the place of what is printed."""
    text = f"{command.text} {step.more}".strip()
    for placeholder, value in {
        **step.instead,
        "TINY": str(here.parent / "tiny" / "model"),
        "JUDGE": judge.url,
    }.items():
        text = re.sub(rf"(?<![\w./-]){re.escape(placeholder)}(?![\w-])", value, text)
    return text


def run(text, typed, monkeypatch, capfd, tmp_path):
    """Run a line, and return its exit status and all that it printed."""
    (tmp_path / "typed").write_text(typed)
    if re.search(r"[|>&]", text) or not text.startswith("paca "):
        place = ROOT if text.startswith("make ") else None
        done = subprocess.run(["bash", "-c", text], cwd=place, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    with (tmp_path / "typed").open() as stdin, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", stdin)
        capfd.readouterr()
        try:
            status = main(shlex.split(text)[1:])
        except SystemExit as left:
            status = left.code
    said = capfd.readouterr()
    return status, said.out + said.err


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_printed(page, here, monkeypatch, capfd, tmp_path):
    TRANSCRIPTS.mkdir(parents=True, exist_ok=True)
    if page in RECIPES:
        (here / "mine.yaml").write_text(RECIPES[page])
    if page in BEFORE:
        assert main(["finetune", *BEFORE[page].split(), "--no-doctor"]) == 0
    (here / "qpaca.yaml").write_text(small_recipe("llama3.1-70b-qpaca-oasst1"))
    with serving(Judge()) as judge, (TRANSCRIPTS / f"{page.replace('/', '-')}.txt").open("w") as transcript:
        for command in commands(page):
            if is_synopsis(command):
                continue
            step = step_of(command)
            if step.why_not:
                transcript.write(f"$ {command.text}\n(not run here: {step.why_not})\n\n")
                continue
            text, started = typed_text(command, step, here, judge), time.monotonic()
            status, said = run(text, step.typed, monkeypatch, capfd, tmp_path)
            transcript.write(f"$ {text}\n{said}(status {status}, {time.monotonic() - started:.1f} s)\n\n")
            transcript.flush()
            assert status == step.status, f"{command.page}:{command.line}: {text}\n{said}"
            assert not re.search(OF_OTHERS, said), f"{command.page}:{command.line}: {text}\n{said}"
            assert re.search(step.says, said), f"{command.page}:{command.line}: {text}\n{said}"


def small_recipe(name):
    """A recipe that ships, of a model of two layers."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return re.sub(r"(?m)^  name: [\w-]+/.*$", "  name: path/to", text, count=1)


SYNOPSES = [command for page in PAGES for command in commands(page) if is_synopsis(command)]


@pytest.mark.parametrize("command", SYNOPSES, ids=lambda command: command.page)
def test_what_a_synopsis_offers_is_there(command, capsys):
    verb = command.text.split()[1]
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    told = capsys.readouterr().out
    offered = re.findall(r"--[a-z][\w-]*", command.text)
    assert [option for option in offered if option not in told] == []


def test_readme_lists_every_verb():
    listed = re.findall(r"^\| \[`paca (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(verb.name for verb in VERBS)


def test_commands_are_found_in_every_kind_of_block(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "Text with `paca inline`.\n\n```console\n$ paca a   # why\nwhat it prints\npaca no command\n```\n"
        "```\npaca b \\\n    --option\n```\n\n    paca c x\n    a line of text\n\n```python\nmake = 1\n```\n"
    )
    monkeypatch.setattr("tests.walk.pages.ROOT", tmp_path)
    assert [found.text for found in commands("page.md")] == ["paca a", "paca b --option", "paca c x"]


def test_every_command_has_its_step_and_every_step_its_command():
    every = [command for page in PAGES for command in commands(page) if not is_synopsis(command)]
    assert len(every) > 40
    assert {id(step_of(command)) for command in every} == {id(step) for step in STEPS.values()}
    assert all(isinstance(command, Command) for command in every)
