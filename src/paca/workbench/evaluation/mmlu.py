"""MMLU from local files: lm-evaluation-harness's own task files, told to take their questions from there.

Prompts, few-shot examples, scores and categories are the harness's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base import yaml
from paca.workbench.base.messages import problem_list, suggestion
from paca.workbench.data.documents import near_files
from paca.workbench.data.files import read_csv, read_parquet
from paca.workbench.data.formats import BadRow
from paca.workbench.data.mmlu import LETTERS, choices_of, letter_of, question_problem

SPLITS = ("dev", "test")
CATEGORIES = ("stem", "humanities", "social_sciences", "other")

Question = dict[str, Any]
Subjects = dict[str, dict[str, list[Question]]]


@lru_cache(maxsize=1)
def read_subjects(place: str) -> Subjects:
    """Read MMLU's questions and the examples for its prompts.

    Args:
        place: A folder with `dev/*_dev.csv` and `test/*_test.csv`, as the authors published them; one Parquet file
            with a column `split`; or a folder with `dev*.parquet` and `test*.parquet`.

    Returns:
        By subject and split, questions as the harness's task files expect them.

    Raises:
        PacaError: If there is none, or some are not whole; with the first few problems.
    """
    subjects: Subjects = {}
    problems = []
    for where, split, row in _placed(Path(place).expanduser()):
        problem = _problem(split, row)
        if problem:
            problems.append(f"{where}: {problem}")
        elif split in SPLITS:
            found = subjects.setdefault(row["subject"], {name: [] for name in SPLITS})
            answer = LETTERS.index(letter_of(row["answer"]) or "")
            question = {"question": row["question"], "choices": list(choices_of(row)), "answer": answer}
            found[split].append({**question, "subject": row["subject"]})
    if problems:
        raise PacaError(problem_list(problems))
    return {name: splits for name, splits in sorted(subjects.items()) if splits["test"]}


def load_subject(place: str, subject: str, **_: Any) -> Any:
    """Give the harness one subject's questions as a `datasets.DatasetDict`. Task files name this function."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(rows) for split, rows in read_subjects(place)[subject].items()})


def check_subjects(subjects: Subjects, shots: int, place: str) -> None:
    """Refuse questions that the harness could not ask with a PacaError.

    There are none, a subject is not one of MMLU's, or has fewer examples than `shots`, those in each prompt.
    """
    if not subjects:
        raise PacaError(f"There are no test questions of MMLU in {place!r}.")
    known = {name for names in categories().values() for name in names}
    problems = [f"{name!r} is no subject of MMLU{suggestion(name, known)}" for name in subjects if name not in known]
    problems += [
        f"{name!r} has {len(splits['dev'])} examples in dev, fewer than the {shots} of a prompt"
        for name, splits in subjects.items()
        if len(splits["dev"]) < shots
    ]
    if problems:
        raise PacaError(f"MMLU in {place!r}: {problem_list(problems)}.")


def digest(subjects: Subjects) -> str:
    """Digest questions to 16 hexadecimal digits, so that results of others are never taken for theirs."""
    return hashlib.sha256(json.dumps(subjects, sort_keys=True).encode()).hexdigest()[:16]


def categories() -> dict[str, list[str]]:
    """Read from the harness's task files which subjects make up each category."""
    found: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for path in sorted(_harness_folder().glob("mmlu_*.yaml")):
        config = yaml.parse(path.read_text(encoding="utf-8"))
        found[config["tag"].removeprefix("mmlu_").removesuffix("_tasks")].append(config["dataset_name"])
    return found


def write_task_files(folder: Path, place: str, subjects: Iterable[str]) -> None:
    """Write task files that include the harness's own and take these subjects' questions from local files.

    `lm_eval --include_path` reads them, too; `place` is as for `read_subjects`.
    """
    folder.mkdir(exist_ok=True)
    wanted = set(subjects)
    chosen = {category: sorted(wanted & set(names)) for category, names in categories().items()}
    for category, names in chosen.items():
        for name in names:
            _write(folder / f"mmlu_{name}.yaml", _subject_task(name, place))
        if names:
            group = {"group": f"mmlu_{category}", "task": [f"mmlu_{name}" for name in names]}
            _write(folder / f"_mmlu_{category}.yaml", _including(f"_mmlu_{category}.yaml", group))
    groups = [f"mmlu_{category}" for category, names in chosen.items() if names]
    _write(folder / "_mmlu.yaml", _including("_mmlu.yaml", {"group": "mmlu", "task": groups}))


def _subject_task(name: str, place: str) -> str:
    function = f"custom_dataset: !function {__name__}.{load_subject.__name__}\n"
    own = {
        "task": f"mmlu_{name}",
        "dataset_kwargs": {"place": str(Path(place).expanduser().resolve()), "subject": name},
    }
    return _including(f"mmlu_{name}.yaml", own) + function


def _including(file: str, own: Mapping[str, Any]) -> str:
    return yaml.dump({"include": str(_harness_folder() / file), **own})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _harness_folder() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"


def _placed(place: Path) -> Iterator[tuple[str, str, Any]]:
    """Every row with its place and its split."""
    if place.is_file() and place.suffix == ".parquet":
        for where, row in read_parquet(place):
            yield where, str(row.get("split")), row
        return
    if not place.is_dir():
        raise PacaError(
            f"There is no folder {str(place)!r}{near_files(place)}; name the folder that holds MMLU's dev/ and test/, "
            "or a Parquet file with a column 'split'."
        )
    for split in SPLITS:
        files = sorted((place / split).glob(f"*_{split}.csv")) or sorted(place.glob(f"{split}*.parquet"))
        if not files:
            raise PacaError(f"{str(place)!r} holds neither {split}/*_{split}.csv nor {split}*.parquet.")
        for path in files:
            read = read_csv if path.suffix == ".csv" else read_parquet
            yield from ((where, split, row) for where, row in read(path))


def _problem(split: str, row: Any) -> str | None:
    if isinstance(row, BadRow):
        return row.problem
    if split not in (*SPLITS, "val", "validation", "auxiliary_train"):
        return f"the split {split!r} is none of MMLU's"
    lacking = [name for name in ("question", "answer", "subject") if row.get(name) is None]
    return f"lacks {', '.join(lacking)}" if lacking else question_problem(row)
