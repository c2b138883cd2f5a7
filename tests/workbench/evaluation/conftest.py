"""A tiny model with an adapter, MT-Bench's files and MMLU's, all small."""

import csv

import pytest
from tests.workbench.tiny import SENTENCES, recipe_content, save_adapted, write_jsonl, write_text

SUBJECTS = {"anatomy": 3, "astronomy": 2, "philosophy": 2, "marketing": 4}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model, and an adapter that changes what it says."""
    return save_adapted(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def adapter(folder):
    return str(folder / "adapter")


def question_row(subject, number):
    return [f" {SENTENCES[number % 12]} {subject}? ", "the cat", "the dog", "None", "a, b", "ABCD"[number % 4]]


def write_mmlu(place, subjects=SUBJECTS):
    """CSV files as MMLU's authors publish them."""
    for split in ("dev", "test"):
        (place / split).mkdir(parents=True)
    for subject, count in subjects.items():
        for split, rows in (("dev", range(5)), ("test", range(5, 5 + count))):
            with (place / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(question_row(subject, number) for number in rows)
    return place


@pytest.fixture
def mmlu_data(tmp_path):
    return write_mmlu(tmp_path / "mmlu")


BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["The cat jumps.", "The dog walks {answer}."]},
    {"question_id": 82, "category": "writing", "turns": ["Over the log.", "Over the mat."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who jumps?", "Who walks?"]},
]
PROMPTS = [
    {"name": "pair-v2", "type": "pairwise", "system_prompt": "?", "prompt_template": "?"},
    {"name": "single-v1", "system_prompt": "S", "prompt_template": "one: {question} / {answer} [[rating]]"},
    {
        "name": "single-math-v1",
        "system_prompt": "S",
        "prompt_template": "math: {question} / {ref_answer_1} / {answer} [[rating]]",
    },
    {
        "name": "single-v1-multi-turn",
        "system_prompt": "M",
        "prompt_template": "two: {question_1} / {answer_1} / {question_2} / {answer_2}",
    },
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "M",
        "prompt_template": "math two: {question_1} {ref_answer_1} {question_2} {ref_answer_2} {answer_1} {answer_2}",
    },
]


@pytest.fixture
def bench(tmp_path):
    return write_bench(tmp_path / "mt_bench")


def write_bench(place):
    """MT-Bench's files as they are published."""
    (place / "reference_answer").mkdir(parents=True)
    write_jsonl(place / "question.jsonl", BENCH)
    write_jsonl(place / "judge_prompts.jsonl", PROMPTS)
    reference = {"question_id": 101, "choices": [{"index": 0, "turns": ["The cat.", "The dog."]}]}
    write_jsonl(place / "reference_answer" / "gpt-4.jsonl", [reference])
    return place


@pytest.fixture
def content(folder, tmp_path):
    return recipe_content(folder / "model", write_text(tmp_path / "text.txt"), tmp_path / "run")
