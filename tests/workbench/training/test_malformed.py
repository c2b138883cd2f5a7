"""Malformed recipes, data files and models: one line, a non-zero status, no code run, nothing written elsewhere."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import yaml
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.cli.main import main

RAN = Path(__file__).with_name("ran")  # what code in a file would make


class _Touch:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return Path.touch, (RAN,)


PICKLE = pickle.dumps(_Touch())
TAG = f"!!python/object/apply:os.system [touch {RAN}]"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
QUESTION = {"question": "q", "choices": ["1", "2", "3", "4"], "answer": 1}


def json_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# The whole file.
FILES = {
    "empty": b"",
    "a comment": b"# nothing\n",
    "a list": b"- model\n",
    "a number": b"5\n",
    "a sentence": b"please train my model\n",
    "cut short": b"model: {name: x",
    "tabs": b"model:\n\tname: x\n",
    "binary": bytes(range(256)),
    "UTF-16": "model: {name: x}\n".encode("utf-16"),
    "Latin-1": "model: {name: é}\n".encode("latin-1"),
    "NUL": b"model: {name: 'a\0b'}\n",
    "a pickle": PICKLE,
    "an object": f"model: {{name: {TAG}}}\n".encode(),
    "a class": b"model: {name: !!python/name:os.system }\n",
    "nested without end": b"model: " + b"[" * 20000,
    "references to references": b"a0: &a0 [x, x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)),
    "a reference to itself": b"model: &a {name: *a}\n",
    "a key twice": b"output_dir: a\noutput_dir: b\n",
    "an unknown reference": b"model: *nowhere\n",
    "a long line": b"model: {name: [" + b"x, " * 300_000 + b"x]}\n",
}
# One key of a good recipe.
VALUES = {
    "nothing to train": "data.train=[]",
    "no name": "data.train=",
    "a number for a name": "data.train=5",
    "a list for a section": "model=[1, 2]",
    "a word for a section": "data=mine",
    "an unknown key": "modle=x",
    "a number for a key": "training.5=x",
    "a word for a number": "training.learning_rate=fast",
    "no number": "training.learning_rate=.nan",
    "an endless number": "training.learning_rate=.inf",
    "a negative length": "training.max_length=-1",
    "no length": "training.max_length=0",
    "an empty batch": "training.per_device_train_batch_size=0",
    "no accumulation": "training.gradient_accumulation_steps=0",
    "a text for a count": "training.max_steps='5'",
    "a date": "training.max_steps=2026-01-01",
    "a negative seed": "seed=-1",
    "a seed too large": "seed=99999999999999999999",
    "no rank": "method.r=0",
    "a word for a rank": "method.r=low",
    "a number for targets": "method.target_modules=5",
    "an unknown method": "method.name=pacca",
    "an unknown precision": "model.dtype=int4",
    "a list for a quantization": "model.quantization=[nf4]",
    "an unknown template": "model.chat_template=nowhere.jinja",
    "no model": "model.name=",
    "an endless name": "model.name=" + "x" * 100_000,
    "an unknown format": "data.format=xml",
    "weights for nothing": "data.weights=[1, 2]",
    "an unknown task": "task=sing",
    "no output folder": "output_dir=",
    "an endless output folder": "output_dir=" + "x" * 300,
    "an output folder below a file": "output_dir={folder}/text.txt/run",
    "a file for an output folder": "output_dir={folder}/text.txt",
    "somebody's output folder": "output_dir={folder}/others",
    "an output folder that leads nowhere": "output_dir={folder}/dangling",
    "an unknown logger": "training.report_to=paper",
}  # fmt: skip
# The data file, by name.
DATA = {
    "empty.jsonl": b"",
    "blank.jsonl": b" \n\n",
    "cut.jsonl": json_lines({"text": "x"})[:-4],
    "words.jsonl": b"once upon a time\n",
    "utf16.jsonl": '{"text": "x"}\n'.encode("utf-16"),
    "latin1.jsonl": '{"text": "\xe9"}\n'.encode("latin-1"),
    "binary.txt": bytes(range(256)),
    "pickle.jsonl": PICKLE,
    "pickle.pkl": PICKLE,
    "weights.pt": PICKLE,
    "arrays.npz": PICKLE,
    "pickle.parquet": PICKLE,
    "pickle.csv": PICKLE,
    "list.jsonl": b"[1, 2]\n",
    "null.jsonl": b"null\n",
    "number.jsonl": b'{"text": 5}\n',
    "no-text.jsonl": b'{"text": null}\n',
    "digits.jsonl": b'{"text": ' + b"9" * 5000 + b"}\n",
    "nested.jsonl": b'{"text": ' + b"[" * 100_000 + b"\n",
    "surrogate.jsonl": b'{"text": "\\ud800"}\n',
    "unknown.jsonl": json_lines({"x" * 1_000_000: "y" * 4_000_000}),
    "mixed.jsonl": json_lines({"text": "x"}, {"messages": CHAT}),
    "messages-text.jsonl": json_lines({"messages": "hi"}),
    "messages-none.jsonl": json_lines({"messages": []}),
    "messages-no-role.jsonl": json_lines({"messages": [{"content": "x"}]}),
    "messages-parts.jsonl": json_lines({"messages": [{"role": "user", "content": ["x"]}]}),
    "messages-no-answer.jsonl": json_lines({"messages": CHAT[:1]}),
    "messages-no-question.jsonl": json_lines({"messages": CHAT[1:]}),
    "alpaca.jsonl": json_lines({"instruction": 5, "output": "x"}),
    "completion.jsonl": json_lines({"prompt": CHAT, "completion": "x"}),
    "sharegpt.jsonl": json_lines({"conversations": [{"from": "nobody", "value": "x"}]}),
    "tree.jsonl": json_lines({"message_tree_id": "1", "prompt": {"role": "prompter", "text": "x", "replies": 5}}),
    "mmlu-answer.jsonl": json_lines({**QUESTION, "answer": "E"}),
    "mmlu-choices.jsonl": json_lines({**QUESTION, "choices": "abcd"}),
    "object.json": b'{"rows": []}',
    "cut.json": b'[{"text": "x"}, ',
    "header.csv": b"name,age\nx,1\n",
    "ragged.csv": b"instruction,output\nx\n",
    "quote.csv": b'instruction,output\n"x,y\n',
    "field.csv": b"instruction,output\nx," + b"y" * 200_000 + b"\n",
    "no.parquet": b"PAR1 and no more",
    "nowhere.jsonl": None,
}
SOURCES = {
    "a folder of nothing": "data.train={folder}/hollow",
    "a folder with a script": "data.train={folder}/scripted",
    "a link to nowhere": "data.train={folder}/dangling.jsonl",
    "a device": "data.train=/dev/zero",
    "an endless data name": "data.train=" + "x" * 100_000,
    "a name with NUL": 'data.train="a\\0b.jsonl"',
    "above the folder": "data={{path: {folder}/hollow, train: ../nothing.jsonl, holdout_every: 2}}",
}
# One file of the model's folder.
MODEL = {
    "config.json": b"{",
    "tokenizer.json": b"[]",
    "model.safetensors": b"\xff" * 64,
    "pytorch_model.bin": PICKLE,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(model, tmp_path):
    write_text(tmp_path / "text.txt")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("mine")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(f"import pathlib\npathlib.Path({str(RAN)!r}).touch()\n")
    for name in ("dangling", "dangling.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere" / "at" / "all")
    return write_recipe(tmp_path / "r.yaml", recipe_content(model, tmp_path / "text.txt", tmp_path / "run"))


def tree(folder):
    """Every file below a folder but the run's own."""
    return sorted(str(path) for path in folder.rglob("*") if "run" not in path.relative_to(folder).parts)


def assert_refused(capsys, monkeypatch, tmp_path, *arguments):
    """Run the command, and check all that is promised of a refusal."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = tree(tmp_path)
    try:
        status = main(["finetune", *map(str, arguments)])
        error = capsys.readouterr().err
        assert status == 2
        message = error[error.index("paca finetune: ") :]
        assert message.endswith("\n")
        several = re.search(r" has (\d+) problems:\n", message)  # all at once, a line each
        assert message.count("\n") == (1 + int(several[1]) if several else 1), message
        assert max(map(len, message.split("\n"))) < 1000
        assert "Traceback" not in error
        assert tree(tmp_path) == before
        assert not RAN.exists()
    finally:
        RAN.unlink(missing_ok=True)
    return message


def test_there_are_a_hundred():
    assert len(FILES) + len(VALUES) + len(DATA) + len(SOURCES) + len(MODEL) >= 100


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_recipe(name, capsys, monkeypatch, tmp_path):
    (tmp_path / "r.yaml").write_bytes(FILES[name])
    message = assert_refused(capsys, monkeypatch, tmp_path, tmp_path / "r.yaml")
    assert name != "a key twice" or "the key 'output_dir' is given twice" in message


@pytest.mark.parametrize("name", VALUES)
def test_a_malformed_value(name, recipe, capsys, monkeypatch, tmp_path):
    message = assert_refused(capsys, monkeypatch, tmp_path, recipe, VALUES[name].format(folder=tmp_path))
    key = VALUES[name].split("=")[0].split(".")[-1]
    assert key in message or key in ("output_dir", "name", "train", "5")


@pytest.mark.parametrize("name", DATA)
def test_a_malformed_data_file(name, recipe, capsys, monkeypatch, tmp_path):
    path = tmp_path / name
    if DATA[name] is not None:
        path.write_bytes(DATA[name])
    assert str(path) in assert_refused(capsys, monkeypatch, tmp_path, recipe, f"data.train={path}")


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_is_none(name, recipe, capsys, monkeypatch, tmp_path):
    assert_refused(capsys, monkeypatch, tmp_path, recipe, SOURCES[name].format(folder=tmp_path))


@pytest.mark.parametrize("name", MODEL)
def test_a_damaged_model(name, model, recipe, capsys, monkeypatch, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model.iterdir():
        if path.name != name and not (name == "pytorch_model.bin" and path.suffix == ".safetensors"):
            os.link(path, damaged / path.name)
    (damaged / name).write_bytes(MODEL[name])
    assert "could not be loaded" in assert_refused(capsys, monkeypatch, tmp_path, recipe, f"model.name={damaged}")


def test_what_is_refused_here_would_do_harm():
    """The canaries sing: read without care, the pickle and the YAML make the file."""
    try:
        pickle.loads(PICKLE)
        assert RAN.exists()
        RAN.unlink()
        yaml.load(f"x: {TAG}", Loader=yaml.UnsafeLoader)
        assert RAN.exists()
    finally:
        RAN.unlink(missing_ok=True)


def test_the_good_recipe_is_accepted(recipe, tmp_path):
    assert main(["finetune", str(recipe), "training.max_steps=1", "--no-doctor"]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()
