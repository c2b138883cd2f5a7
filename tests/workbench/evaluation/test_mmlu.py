"""MMLU from local files: prompts and scores beside those of lm-evaluation-harness and of plain arithmetic."""

import json

import pytest
import torch
from tests.paths import SHARED
from tests.workbench.evaluation.conftest import SUBJECTS, question_row, write_mmlu

from paca import PacaError
from paca.workbench.cli.main import main
from paca.workbench.evaluation import mmlu
from paca.workbench.evaluation.evaluated_model import EvaluatedModel
from paca.workbench.evaluation.harness import index_tasks

MMLU = SHARED / "data" / "mmlu"
needs_shared = pytest.mark.skipif(not MMLU.is_dir(), reason="needs ../shared/data/mmlu")


def requests(manager, task, limit):
    """What the harness asks a model, 5-shot."""
    built = manager.load([task])["tasks"][task]
    built.set_config(key="num_fewshot", value=5)
    built.set_fewshot_seed(seed=1234)
    built.build_all_requests(limit=limit, rank=0, world_size=1)
    return [instance.args for instance in built.instances]


@needs_shared
@pytest.mark.parametrize("subject", ["anatomy", "us_foreign_policy", "high_school_computer_science"])
def test_the_harness_asks_the_same_by_its_own_task_files(subject, tmp_path, monkeypatch):
    """Its own files, with no word of paca in them, given the released data in the release's form."""
    import datasets
    import pandas

    mmlu.write_task_files(tmp_path, str(MMLU), [subject])
    ours = requests(index_tasks(["mmlu"], str(tmp_path)), f"mmlu_{subject}", 20)

    def rows(split):
        read = pandas.read_csv(MMLU / split / f"{subject}_{split}.csv", header=None, keep_default_na=False, dtype=str)
        return datasets.Dataset.from_list(
            [{"question": r[0], "choices": list(r[1:5]), "answer": "ABCD".index(r[5])} for r in read.values.tolist()]
        )

    asked = []

    def load_dataset(path, name, **_):
        asked.append((path, name))
        return datasets.DatasetDict({split: rows(split) for split in ("test", "dev")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    theirs = requests(index_tasks(["mmlu"], str(mmlu._harness_folder())), f"mmlu_{subject}", 20)
    assert asked == [("cais/mmlu", subject)]
    assert ours == theirs
    assert len(ours) == 80
    assert ours[0][0].count("Answer:") == 6


def test_scores_are_the_share_of_questions_whose_likeliest_letter_is_right(adapter, mmlu_data, tmp_path, capsys):
    options = ["--mmlu-data", str(mmlu_data), "--output", str(tmp_path / "out"), "--json"]
    assert main(["eval", adapter, "--tasks", "mmlu", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    evaluated = EvaluatedModel(adapter)
    right = {name: [likeliest(evaluated, name, number) for number in range(count)] for name, count in SUBJECTS.items()}
    for name, found in right.items():
        entry = result["tasks"][f"mmlu_{name}"]
        assert entry["questions"] == len(found)
        assert entry["metrics"]["acc"] == pytest.approx(sum(found) / len(found))
    everything = [value for found in right.values() for value in found]
    assert result["groups"]["mmlu"]["metrics"]["acc"] == pytest.approx(sum(everything) / 11)
    assert result["groups"]["mmlu"]["questions"] == 11
    stem = right["anatomy"] + right["astronomy"]
    assert result["groups"]["mmlu_stem"]["metrics"]["acc"] == pytest.approx(sum(stem) / 5)
    assert set(result["groups"]) == {"mmlu", "mmlu_stem", "mmlu_humanities", "mmlu_other"}
    assert result["shots"] == 5
    assert json.loads((tmp_path / "out" / "mmlu" / "result.json").read_text()) == result


@torch.no_grad()
def likeliest(evaluated, name, number):
    """Whether a question is answered rightly, by one forward pass over its whole prompt."""
    about = name.replace("_", " ")
    blocks = []
    for index in (*range(5), 5 + number):
        row = question_row(name, index)
        lines = [row[0].strip(), *(f"{letter}. {choice}" for letter, choice in zip("ABCD", row[1:5], strict=True))]
        blocks.append("\n".join([*lines, "Answer:"]) + (f" {row[5]}" if index < 5 else ""))
    prompt = f"The following are multiple choice questions (with answers) about {about}.\n\n" + "\n\n".join(blocks)
    start = evaluated.tokenizer(prompt, return_tensors="pt")["input_ids"]
    total = []
    for letter in "ABCD":
        ids = evaluated.tokenizer(f"{prompt} {letter}", return_tensors="pt")["input_ids"]
        logits = evaluated.model(input_ids=ids).logits[0].log_softmax(-1)
        total.append(sum(float(logits[i - 1, ids[0, i]]) for i in range(start.shape[1], ids.shape[1])))
    return total.index(max(total)) == "ABCD".index(question_row(name, 5 + number)[5])


def test_table_limit_and_merging(adapter, mmlu_data, tmp_path, capsys):
    options = ["--mmlu-data", str(mmlu_data), "--output", str(tmp_path / "out"), "--limit", "1", "--merged"]
    assert main(["eval", adapter, "--tasks", "mmlu", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"mmlu: {tmp_path / 'out' / 'mmlu' / 'result.json'}"
    assert lines[1].split() == ["task", "questions", "acc", "±"]
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["stem", "2"],
        ["humanities", "1"],
        ["other", "1"],
        ["mmlu", "4"],
    ]


@needs_shared
def test_the_csv_files_and_the_release_are_read_alike():
    csv_files = mmlu.read_subjects(str(MMLU))
    release = mmlu.read_subjects(str(MMLU / "released_test_dev.parquet"))
    assert len(csv_files) == len(release) == 57
    assert sum(len(splits["test"]) for splits in csv_files.values()) == 14079
    assert sum(len(splits["test"]) for splits in release.values()) == 14042
    same = sum(question in csv_files[name]["test"] for name in release for question in release[name]["test"])
    assert same >= 12048
    assert {name for names in mmlu.categories().values() for name in names} == set(csv_files)


def test_the_release_as_the_hub_has_it(tmp_path):
    import datasets

    rows = [
        {"question": "q", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": n % 4} for n in range(5)
    ]
    for split in ("test", "dev"):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    found = mmlu.read_subjects(str(tmp_path))
    assert found["anatomy"]["dev"][1] == {**rows[1], "answer": 1}


@pytest.mark.parametrize(
    ("subjects", "shots", "message"),
    [
        ({"anatomi": 2}, 5, "'anatomi' is no subject of MMLU; did you mean 'anatomy'?"),
        ({"anatomy": 2}, 6, "'anatomy' has 5 examples in dev, fewer than the 6 of a prompt"),
        ({"anatomy": 0}, 5, "is empty"),
    ],
)
def test_questions_that_cannot_be_asked(tmp_path, subjects, shots, message):
    place = str(write_mmlu(tmp_path / "data", subjects))
    with pytest.raises(PacaError, match=message.replace("?", r"\?")):
        mmlu.check_subjects(mmlu.read_subjects(place), shots, place)
