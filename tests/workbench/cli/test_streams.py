"""Whatever a terminal can show, and whoever has stopped reading, a command ends with a line or quietly."""

import io
import os
import subprocess
import sys

import pytest
from tests.workbench.tiny import write_jsonl, write_recipe

from paca.workbench.cli.main import main
from paca.workbench.cli.streams import LastingStream, lasting_streams

pytestmark = pytest.mark.road("terminals")
ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "koi8-r", "shift_jis", "utf-8", "utf-16")
SHOWN = "improved → 5 × 3, ⟦猫⟧ é \ud800"


def stream_of(encoding, file=None):
    return io.TextIOWrapper(io.BytesIO() if file is None else file, encoding=encoding)


def written(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.fixture
def gone():
    """A text stream to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream


@pytest.fixture
def recipe(content, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"猫 {n} → ü?"}, {"role": "assistant", "content": "⟦×⟧ né"}]}
        for n in range(8)
    ]
    content["data"] = {"train": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "holdout_every": 4}
    content["training"].update(max_length=128, max_steps=2)
    return str(write_recipe(tmp_path / "recipe.yaml", content))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_an_encoding_has_not_is_escaped(monkeypatch, encoding):
    out, err = stream_of(encoding), stream_of(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with lasting_streams():
        print(SHOWN)
        print(SHOWN, file=sys.stderr)
    assert sys.stdout is out
    for stream in (out, err):
        shown = written(stream).rstrip("\r\n")
        assert "\\ud800" in shown
        escaped = SHOWN.encode(encoding, "backslashreplace").decode(encoding)
        assert shown == escaped
    with pytest.raises(UnicodeEncodeError):
        SHOWN.encode(encoding)  # what print would have done


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("words", [["recipes"], ["data", "{recipe}"], ["doctor", "{recipe}"], ["nonesuch", "→"]])
def test_verbs_on_any_terminal(recipe, monkeypatch, encoding, words):
    out, err = stream_of(encoding), stream_of(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    if words[0] == "nonesuch":
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "invalid choice: 'nonesuch'" in written(err)
        return
    assert main([word.format(recipe=recipe) for word in words]) in (0, 1)
    assert len(written(out).splitlines()) > 4
    assert "Traceback" not in written(err)


def test_a_finished_run_says_so_in_ascii(recipe, monkeypatch, tmp_path):
    out = stream_of("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["finetune", recipe]) == 0
    assert [line.split(":")[0] for line in written(out).splitlines()[-3:]][1:] == ["adapter", "merge"]


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "show", "smollm2-mmlu"], ["data", "{recipe}"]])
def test_a_reader_that_has_gone_is_no_failure(recipe, monkeypatch, capfd, gone, words):
    monkeypatch.setattr(sys, "stdout", gone)
    assert main([word.format(recipe=recipe) for word in words]) == 0
    assert "Broken" not in capfd.readouterr().err


def test_a_run_whose_reader_has_gone_trains_to_its_end(recipe, tmp_path, monkeypatch, gone):
    monkeypatch.setattr(sys, "stdout", gone)
    monkeypatch.setattr(sys, "stderr", gone)
    assert main(["finetune", recipe]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_line_and_status_1(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["recipes"]) == 1
    assert capsys.readouterr().err == "paca: the output can't be written: [Errno 28] No space left on device\n"


def test_streams_that_are_not_there(recipe, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["data", recipe]) == 0
    assert main(["chat", "nowhere/at/all"]) == 2
    assert sys.stdout is None


def test_what_is_lost_is_lost_once(gone):
    stream = LastingStream(gone)
    stream.writelines(["a" * 100_000, "b"])
    stream.flush()
    first = stream.error
    assert isinstance(first, BrokenPipeError)
    assert stream.write("c") == 1
    assert stream.error is first
    assert stream.encoding == "utf-8"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "\udcff.yaml"], "There is no recipe file"),
        (["finetune", "{bytes}"], "is not valid YAML: 'utf-8' codec can't decode byte 0x80"),
        (["data", "{recipe}", "data.train={bytes}.txt"], "is not UTF-8 text: 'utf-8' codec can't decode byte 0x80"),
        (["data", "{recipe}", "model.chat_template={bytes}"], "can't be read: 'utf-8' codec can't decode byte 0x80"),
        (["data", "{recipe}", "seed=\udcff"], "is not valid YAML: unacceptable character"),
        (["data", "{recipe}", "se\udcffed=3"], "there is no such key"),
        (["chat", "\udcff"], "There is no model folder"),
        (["export", "\udcff", "--to", "lora"], "There is no folder"),
        (["exec", "--", "\udcff"], "There is no program"),
        (["plan", "{bytes}"], "can't be read"),
    ],
)
def test_bytes_that_are_no_text(recipe, tmp_path, monkeypatch, words, message):
    for name in ("bytes", "bytes.txt"):
        (tmp_path / name).write_bytes(bytes(range(256)))
    err = stream_of("utf-8")
    monkeypatch.setattr(sys, "stderr", err)
    assert main([word.format(recipe=recipe, bytes=tmp_path / "bytes") for word in words]) == 2
    assert message in written(err)


COMMAND = [sys.executable, "-m", "paca.workbench.cli"]


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "latin-1", "utf-16"])
def test_as_a_process_in_an_encoding(encoding):
    done = subprocess.run(
        [*COMMAND, "recipes"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["finetune", "--help"]])
def test_as_a_process_into_a_closed_pipe(words, gone):
    done = subprocess.run([*COMMAND, *words], stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


INTERRUPTED = """
import os, signal, sys, time
from paca.workbench.cli import main as cli
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)  # the signal may come a moment later
cli.build_parser = interrupted
sys.exit(cli.main(["recipes"]))
"""


def test_as_a_process_that_is_interrupted_before_it_began():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"paca: interrupted\n")
