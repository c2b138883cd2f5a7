"""Another tool's command line, in which PEFT knows PaCA."""

import subprocess
import sys

import pytest

from paca.workbench.cli.exec import environment
from paca.workbench.cli.main import main

ASK = (
    "from peft import PEFT_TYPE_TO_CONFIG_MAPPING as known;"
    "print([config.__module__ for kind, config in known.items() if kind == 'PACA'])"
)


def test_a_python_process_knows_paca_and_others_do_not(capfd):
    assert subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert main(["exec", "--", sys.executable, "-c", ASK]) == 0
    assert capfd.readouterr().out == "['paca.tuner.config']\n"


def test_the_exit_status_and_the_arguments_are_the_command_s(capfd):
    assert main(["exec", sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "--to", "x"]) == 7
    assert capfd.readouterr().out == "['--to', 'x']\n"
    assert main(["exec", "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 128 + 15


def test_the_start_up_module_that_is_hidden_runs_too(tmp_path, monkeypatch, capfd):
    (tmp_path / "sitecustomize.py").write_text("print('theirs')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["exec", "--", sys.executable, "-c", "import sys; print('paca' in sys.modules)"]) == 0
    assert capfd.readouterr().out == "theirs\nTrue\n"


def test_the_environment_is_otherwise_as_it_was():
    made = environment({"A": "1", "PYTHONPATH": "there"})
    assert made["A"] == "1"
    assert made["PYTHONPATH"].split(":")[1] == "there"


@pytest.mark.parametrize(("words", "message"), [([], "no command to run"), (["no-such-tool"], "no program")])
def test_nothing_to_run(words, message, capsys):
    assert main(["exec", "--", *words]) == 2
    assert message in capsys.readouterr().err
