"""The evaluations that there are: each checks its own data before any model is loaded, and says how it is run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.data.documents import Place, joined, read_sources
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS
from paca.workbench.evaluation import mmlu, task_files
from paca.workbench.evaluation.evaluated_model import EvaluatedModel, file_digest, slug
from paca.workbench.evaluation.harness import index_tasks, score
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.mt_bench.answers import answer_all
from paca.workbench.evaluation.mt_bench.judge import cases, judge_all, scores
from paca.workbench.evaluation.mt_bench.questions import PROMPTS, read_prompts, read_questions
from paca.workbench.evaluation.perplexity import measure_perplexity
from paca.workbench.evaluation.preference import find_reference, measure_preferences
from paca.workbench.evaluation.request import Request
from paca.workbench.evaluation.tables import (
    answers_table,
    harness_table,
    perplexity_table,
    preference_table,
    scores_table,
)
from paca.workbench.models.adapter_files import CONFIG, WEIGHTS

MMLU_SHOTS = 5  # as the paper scores it
TASK_FILES = "tasks"
ANSWERS = "answers.jsonl"
VERDICTS = "verdicts.jsonl"

Lines = Callable[[Mapping[str, Any]], list[str]]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that was asked for and can be done.

    Args:
        name: What it is called in the output.
        folder: Its own folder, below that of all results.
        settings: All that its result depends on besides the model, as JSON holds it.
        measure: Measures a model, keeping in that folder what it has so far.
        lines: Shows the result.
        outdated: Whether what is asked for now would add to a finished result.
    """

    name: str
    folder: str
    settings: Mapping[str, Any]
    measure: Callable[[EvaluatedModel, Path], dict[str, Any]]
    lines: Lines
    outdated: Callable[[Mapping[str, Any]], bool] = lambda _: False


def prepare(request: Request) -> list[Evaluation]:
    """Prepare the evaluations that are asked for, in order, each once; MT-Bench makes two.

    A PacaError if one is unknown, or its data are missing or incomplete.
    """
    names = list(dict.fromkeys(request.tasks))
    others = [name for name in names if name not in OWN]
    manager = _others(others, request) if others else None
    evaluations: list[Evaluation] = []
    for name in names:
        evaluations += OWN[name](request) if name in OWN else [_harness_task(name, manager, request)]
    return evaluations


def _others(names: list[str], request: Request) -> Any:
    if request.include is not None:
        task_files.check_folder(Path(request.include), request.trust_task_files)
    return index_tasks(names, request.include)


def _harness_task(name: str, manager: Any, request: Request) -> Evaluation:
    settings = {
        "task": name,
        "task_files": task_files.digest(Path(request.include)) if request.include else None,
        **_scoring(request, request.shots),
    }

    def measure(evaluated: EvaluatedModel, folder: Path) -> dict[str, Any]:
        return score(evaluated, name, manager, request, request.shots, folder)

    return Evaluation(name, slug(name), settings, measure, harness_table)


def _scoring(request: Request, shots: int | None) -> dict[str, Any]:
    return {"shots": shots, "limit": request.limit, "chat_template": request.apply_chat_template}


def _mmlu(request: Request) -> list[Evaluation]:
    if request.mmlu_data is None:
        return [_harness_task("mmlu", index_tasks(["mmlu"]), request)]
    place = request.mmlu_data
    subjects = mmlu.read_subjects(place)
    shots = MMLU_SHOTS if request.shots is None else request.shots
    mmlu.check_subjects(subjects, shots, place)

    def measure(evaluated: EvaluatedModel, folder: Path) -> dict[str, Any]:
        mmlu.write_task_files(folder / TASK_FILES, place, subjects)
        manager = index_tasks(["mmlu"], str(folder / TASK_FILES))
        return score(evaluated, "mmlu", manager, request, shots, folder)

    settings = {"questions": mmlu.digest(subjects), **_scoring(request, shots)}
    return [Evaluation("mmlu", "mmlu", settings, measure, harness_table)]


def _perplexity(request: Request) -> list[Evaluation]:
    if not request.text:
        raise PacaError(
            "perplexity is measured on a text: add --text FILE (a text, JSONL, or a recipe's data source)."
        )
    documents = joined(request.text, read_sources(request.text, Place()))
    settings = {
        "texts": [file_digest(Path(name)) if Path(name).is_file() else name for name in request.text],
        "length": request.length,
        "limit": request.limit,
        "batch_size": request.batch_size,
    }

    def measure(evaluated: EvaluatedModel, folder: Path) -> dict[str, Any]:
        return measure_perplexity(evaluated, documents, request.length, request.limit, request.batch_size, folder)

    return [Evaluation("perplexity", "perplexity", settings, measure, perplexity_table)]


def _preference(request: Request) -> list[Evaluation]:
    if not request.text:
        raise PacaError("preference is measured on answers: add --text FILE, rows with 'chosen' and 'rejected'.")
    reference = find_reference(request)
    documents = joined(request.text, read_sources(request.text, Place(formats=PREFERENCE_FORMATS)))
    settings = {
        "texts": [file_digest(Path(name)) if Path(name).is_file() else name for name in request.text],
        **{name: getattr(request, name) for name in ("length", "limit", "batch_size", "beta")},
        "reference": None if reference is None else file_digest(reference / CONFIG, reference / WEIGHTS),
    }

    def measure(evaluated: EvaluatedModel, folder: Path) -> dict[str, Any]:
        return measure_preferences(evaluated, documents, request, folder, reference)

    return [Evaluation("preference", "preference", settings, measure, preference_table)]


def _mt_bench(request: Request) -> list[Evaluation]:
    if request.mt_bench is None:
        raise PacaError("mt-bench needs its questions: add --mt-bench DIR, the folder with question.jsonl.")
    folder = Path(request.mt_bench).expanduser()
    questions = read_questions(folder, request.limit)
    asked = [[question.id, question.category, *question.turns] for question in questions]
    settings = {"questions": asked, "max_new_tokens": request.max_new_tokens, "seed": request.seed}

    def answer(evaluated: EvaluatedModel, at: Path) -> dict[str, Any]:
        return answer_all(evaluated, questions, Journal(at / ANSWERS), request.max_new_tokens, request.seed)

    evaluations = [Evaluation("mt-bench answers", "mt-bench", settings, answer, answers_table)]
    endpoint = request.judge
    if endpoint is None:
        return evaluations
    prompts = read_prompts(Path(request.judge_prompts).expanduser() if request.judge_prompts else folder / PROMPTS)

    def judge(_: EvaluatedModel, at: Path) -> dict[str, Any]:
        answered = Journal(at.parent / ANSWERS)
        answers = {question.id: answered[str(question.id)] for question in questions}
        verdicts = Journal(at / VERDICTS)
        asked = list(cases(questions, answers, prompts))
        judged = judge_all(endpoint, asked, verdicts, request.judge_parallel)
        return {**scores(questions, verdicts), "refused": judged.refused, "asked_with": judged.asked_with}

    settings = {
        "judge": endpoint.model,
        "prompts": {name: [prompt.system, prompt.template] for name, prompt in prompts.items()},
        "references": [question.reference for question in questions],
    }

    def cut_short(result: Mapping[str, Any]) -> bool:
        return result["cut_at"] is not None and result["cut_at"] < endpoint.max_tokens

    place = f"mt-bench/judge-{slug(endpoint.model)}"
    return [*evaluations, Evaluation("mt-bench", place, settings, judge, scores_table, cut_short)]


OWN: dict[str, Callable[[Request], list[Evaluation]]] = {
    "mmlu": _mmlu,
    "perplexity": _perplexity,
    "preference": _preference,
    "mt-bench": _mt_bench,
}
