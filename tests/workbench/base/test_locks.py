"""A folder has one writer at a time; a writer that was killed has none."""

import signal
import subprocess
import sys

import pytest
from tests.workbench.tiny import write_recipe, write_text

from paca import PacaError
from paca.workbench.base import locks
from paca.workbench.base.locks import LOCK, locked, locked_if_ours
from paca.workbench.cli.main import main
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training import run, text
from paca.workbench.training.run_folder import WRITER

pytestmark = pytest.mark.road("locks")
HOLD = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)


@pytest.fixture
def hold():
    """Have another process write to a folder until it is killed, which the function returned does."""
    started = []

    def start(folder):
        folder.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / LOCK)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return lambda: (process.send_signal(signal.SIGKILL), process.wait())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_that_another_process_has_is_refused_until_that_is_killed(tmp_path, hold):
    kill = hold(tmp_path / "a")
    with (
        pytest.raises(PacaError, match=r"Another run is writing to the output folder .*/a'\. Wait .* --output DIR"),
        locked(tmp_path / "a", "run"),
    ):
        pass
    with locked(tmp_path / "b", "run"):
        assert (tmp_path / "b").is_dir()
    kill()
    assert (tmp_path / "a" / LOCK).exists()
    with locked(tmp_path / "a", "run"), pytest.raises(PacaError, match="Another"), locked(tmp_path / "a", "run"):
        pass
    with locked(tmp_path / "a", "run"):
        pass


@pytest.mark.parametrize(("name", "message"), [("file", "can't be made"), ("file/below", "can't be made")])
def test_what_cannot_be_a_folder(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(PacaError, match=message), locked(tmp_path / name, "run"):
        pass


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    with (
        pytest.raises(PacaError, match="holds files that no run wrote"),
        locked_if_ours(tmp_path, "recipe.yaml", "run"),
    ):
        pass
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--overwrite",)])
def test_a_second_run_is_refused(content, tmp_path, hold, capsys, flags):
    recipe = str(write_recipe(tmp_path / "recipe.yaml", content))
    hold(tmp_path / "run")
    assert main(["finetune", recipe, *flags]) == 2
    assert "Another run of paca is writing to the output folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_second_comparison_is_refused(content, tmp_path, hold, capsys, flags):
    recipe = str(write_recipe(tmp_path / "recipe.yaml", content))
    hold(tmp_path / "run-compare")
    assert main(["compare", recipe, *flags]) == 2
    assert "Another comparison is writing to the output folder" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_second_evaluation_is_refused(tiny_model, tmp_path, hold, capsys, flags):
    words = ["eval", str(tiny_model), "--tasks", "perplexity", "--text", str(write_text(tmp_path / "a.txt", 2))]
    hold(tmp_path / "work")
    assert main([*words, "--output", str(tmp_path / "work"), *flags]) == 2
    assert "Another evaluation is writing to the output folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "work").iterdir()] == [LOCK]


def test_a_run_has_its_folder_from_its_first_step_to_its_last_file(content, tmp_path, monkeypatch):
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", content))
    refused = []

    def tried(act):
        def wrapped(*arguments):
            with pytest.raises(PacaError, match="Another run of paca is writing"), locked(tmp_path / "run", WRITER):
                pass
            refused.append(act)
            return act(*arguments)

        return wrapped

    acts = text.train, run.write_card
    monkeypatch.setattr(text, "train", tried(text.train))
    monkeypatch.setattr(run, "write_card", tried(run.write_card))
    run.finetune(recipe)
    assert tuple(refused) == acts
    assert run.finetune(recipe, resume=True)["steps"] == 6
