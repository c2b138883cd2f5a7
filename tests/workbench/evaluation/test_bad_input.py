"""Adapters, judge files, evaluation data, chats and exports that are not what they should be.

Each ends in one line, with status 2, before anything is written outside the output folder or run from a file.
"""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest

from paca.workbench.cli.main import main

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Trap:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def config(**changes):
    def spoil(place):
        path = place / "adapter" / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def put(name, content):
    def spoil(place):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def cut(name, size):
    def spoil(place):
        (place / name).write_bytes((place / name).read_bytes()[:size])

    return spoil


def as_pickle(place):
    weights = place / "adapter" / WEIGHTS
    weights.write_bytes(pickle.dumps(Trap()))


def bin_only(place):
    (place / "adapter" / WEIGHTS).unlink()
    (place / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


EXPORT = ["export", "{place}/adapter", "--to", "lora", "--output", "{place}/out"]
CHAT = ["chat", "{place}/adapter"]
MMLU = ["eval", "{place}/adapter", "--tasks", "mmlu", "--mmlu-data", "{place}/mmlu", "--output", "{place}/out"]
TEXT = ["eval", "{place}/adapter", "--tasks", "perplexity", "--text", "{place}/text.jsonl", "--output", "{place}/out"]
PREFERENCE = [*TEXT[:3], "preference", "--text", "{place}/pairs.jsonl", *TEXT[6:]]
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
BENCH = ["eval", "{place}/adapter", "--tasks", "mt-bench", "--mt-bench", "{place}/mt_bench", "--output", "{place}/out"]
JUDGE = [*BENCH, "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "j"]
TEST_FILE = "mmlu/test/anatomy_test.csv"
QUESTIONS, PROMPTS = "mt_bench/question.jsonl", "mt_bench/judge_prompts.jsonl"
REFERENCE = "mt_bench/reference_answer/gpt-4.jsonl"
GOOD = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}

CASES = {
    "adapter: config cut short": (cut(f"adapter/{CONFIG}", 40), EXPORT, "is not valid JSON"),
    "adapter: config of another type": (put(f"adapter/{CONFIG}", "[1]"), CHAT, "does not name its base model"),
    "adapter: config not text": (put(f"adapter/{CONFIG}", b"\xff\xfe\x00"), EXPORT, "is not valid JSON"),
    "adapter: config nested without end": (put(f"adapter/{CONFIG}", "[" * 100_000), CHAT, "is not valid JSON"),
    "adapter: base of another type": (config(base_model_name_or_path=7), EXPORT, "does not name its base model"),
    "adapter: base is nowhere": (
        config(base_model_name_or_path="../../nowhere"),
        EXPORT,
        "There is no model folder '../../nowhere'",
    ),
    "adapter: rank of another type": (config(r="many"), EXPORT, "the value passed is 'many'"),
    "adapter: rank below zero": (config(r=-1), CHAT, "the value passed is -1"),
    "adapter: rank of another adapter": (config(r=3), EXPORT, "does not fit this model"),
    "adapter: unknown method": (config(peft_type="PACKA"), EXPORT, "can't be loaded"),
    "adapter: names that match nothing": (config(target_modules=["nothing"]), CHAT, "['nothing'] not found"),
    "adapter: weights cut short": (cut(f"adapter/{WEIGHTS}", 500), EXPORT, "safetensors"),
    "adapter: weights empty": (put(f"adapter/{WEIGHTS}", ""), CHAT, "safetensors"),
    "adapter: header too long": (put(f"adapter/{WEIGHTS}", b"\xff" * 64), EXPORT, "safetensors"),
    "adapter: weights are a pickle": (as_pickle, EXPORT, "safetensors"),
    "adapter: only a pickle": (bin_only, CHAT, "is a pickle, which can run code"),
    "export: into a file": (put("out", "mine"), EXPORT, "is not a folder; name one"),
    "export: into somebody's folder": (put("out/mine.txt", "mine"), EXPORT, "holds files that no export wrote"),
    "export: shard size": (put("x", ""), [*EXPORT[:3], "merged", *EXPORT[4:], "--max-shard-size", "big"], "big"),
    "export: dtype": (put("x", ""), [*EXPORT, "--dtype", "float99"], "float99"),
    "mmlu: five columns": (put(TEST_FILE, "q,a,b,c,A\n"), MMLU, "columns"),
    "mmlu: answer": (put(TEST_FILE, "q,a,b,c,d,A\nq,a,b,c,d,E\n"), MMLU, "'answer' must be one of A, B, C, D"),
    "mmlu: not UTF-8": (put(TEST_FILE, b"q\xff,a,b,c,d,A\n"), MMLU, "is not UTF-8 text"),
    "mmlu: huge line": (put(TEST_FILE, '"' + "x" * 300_000 + '",a,b,c,d,A\n'), MMLU, "is not valid CSV"),
    "mmlu: no test": (lambda place: shutil.rmtree(place / "mmlu/test"), MMLU, "holds neither test/*_test.csv"),
    "mmlu: path of another kind": (put("x", ""), [*MMLU[:5], "{place}/text.jsonl"], "There is no folder"),
    "mmlu: pickle as Parquet": (put("p.parquet", pickle.dumps(Trap())), [*MMLU[:5], "{place}/p.parquet"], "Parquet"),
    "perplexity: cut short": (put("text.jsonl", '{"text": "a"}\n{"text": '), TEXT, "text.jsonl:2: not valid JSON"),
    "perplexity: type": (put("text.jsonl", '{"text": 1}'), TEXT, "'text' must be a string, got int"),
    "perplexity: not UTF-8": (put("text.jsonl", b'{"text": "\xff"}'), TEXT, "is not UTF-8 text"),
    "perplexity: pickle": (put("t.pkl", pickle.dumps(Trap())), [*TEXT[:5], "{place}/t.pkl"], "t.pkl"),
    "preference: one answer": (
        put("pairs.jsonl", lines(PAIR, {"prompt": "Q", "chosen": "a"})),
        PREFERENCE,
        "pairs.jsonl:2: has no 'rejected'",
    ),
    "preference: equal answers": (
        put("pairs.jsonl", lines(PAIR, {**PAIR, "rejected": "a "})),
        PREFERENCE,
        "pairs.jsonl:2: 'chosen' and 'rejected' are equal ('a')",
    ),
    "preference: nothing fits": (
        put("pairs.jsonl", lines({**PAIR, "prompt": "cat " * 99})),
        [*PREFERENCE, "--length", "8"],
        "can be preferred within 8 tokens",
    ),
    "bench: cut short": (put(QUESTIONS, lines(GOOD)[:-9]), BENCH, "question.jsonl:1: not valid JSON"),
    "bench: one turn": (put(QUESTIONS, lines({**GOOD, "turns": ["a"]})), BENCH, "'turns' must be a list of two texts"),
    "bench: number": (put(QUESTIONS, lines({**GOOD, "question_id": "../1"})), BENCH, "must be a whole number"),
    "bench: list": (put(QUESTIONS, "[1]\n"), BENCH, "expected an object, got [1]"),
    "bench: twice": (put(QUESTIONS, lines(GOOD, GOOD)), BENCH, "holds question 1 twice"),
    "bench: references": (lambda place: (place / REFERENCE).unlink(), BENCH, "have no reference answer in"),
    "bench: reference": (
        put(REFERENCE, lines({"question_id": 101, "choices": []})),
        BENCH,
        "'choices' must be a list",
    ),
    "judge: no prompts": (lambda place: (place / PROMPTS).unlink(), JUDGE, "There is no file"),
    "judge: no such prompt": (
        put(PROMPTS, lines({"name": "other"})),
        JUDGE,
        "holds no prompt named single-v1, single",
    ),
    "judge: no place": (
        put(PROMPTS, lines({"name": "single-v1", "system_prompt": "", "prompt_template": "{question}"})),
        JUDGE,
        "the prompt single-v1 has no place for {answer}",
    ),
    "eval: results of somebody else": (put("out/mmlu/mine.txt", ""), MMLU, "holds files that no evaluation wrote"),
    "eval: results that are none": (put("out/mmlu/settings.json", "{"), MMLU, "is not what an evaluation wrote"),
}


# These list one problem per layer or name.
SEVERAL_LINES = {"adapter: rank of another adapter", "adapter: names that match nothing"}


@pytest.fixture
def place(folder, mmlu_data, bench, tmp_path, monkeypatch):
    """Everything that is needed, in order; the folder where commands are typed is an empty one."""
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    (tmp_path / "text.jsonl").write_text('{"text": "The cat jumps."}\n')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(place, capfd, case):
    spoil, words, message = CASES[case]
    spoil(place)
    before = sorted(path for path in place.rglob("*") if path.is_file())
    assert main([word.format(place=place) for word in words]) == 2
    said = capfd.readouterr().err
    (error,) = [line for line in said.splitlines() if line.startswith(f"paca {words[0]}: ")]
    assert said.endswith(error + "\n") or case in SEVERAL_LINES
    assert message in error
    assert "Traceback" not in said
    written = {path for path in place.rglob("*") if path.is_file()} - set(before)
    assert all(path.is_relative_to(place / "out") for path in written)
    assert not (place / "here" / "ran").exists()
    assert not [path for path in written if path.name in ("result.json", "certificate.json")]
