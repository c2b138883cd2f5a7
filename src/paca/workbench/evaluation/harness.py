"""Runs tasks of lm-evaluation-harness through its Python API, resumably; prompts and scores are the harness's own."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import one_line, suggestion
from paca.workbench.evaluation.evaluated_model import EvaluatedModel
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.request import Request

ANSWERS = "answers.jsonl"


def index_tasks(names: list[str], folder: str | None = None) -> Any:
    """Make the harness's `TaskManager`, a user's task files first; a PacaError if a task is unknown."""
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        if folder is not None:
            own = TaskManager(include_path=folder, include_defaults=False)
            if all(name in own.all_tasks for name in names):
                return own  # the harness's own list takes long to read
        manager = TaskManager(include_path=folder)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        near = suggestion(unknown[0], [*manager.all_groups, *manager.all_tasks])
        raise PacaError(
            f"There is no task {unknown[0]!r}{near or '.'} It is none of paca's own (mmlu, perplexity, mt-bench) and "
            "none of lm-evaluation-harness's; give the folder with your own task files as --include DIR."
        )
    return manager


def score(
    evaluated: EvaluatedModel, name: str, manager: Any, request: Request, shots: int | None, folder: Path
) -> dict[str, Any]:
    """Score a model on a task or a group: `tasks` and `groups`, each with metrics and number of questions, by name.

    `shots` is the number of examples in the prompt, by default the task's own; answers are kept in `folder` as they
    come. A PacaError if the data can't be had, or the model can't be asked.
    """
    import lm_eval

    from paca.workbench.evaluation.harness_model import RememberingLM

    with quiet_harness(), told_in_one_line(name):
        model = RememberingLM(
            Journal(folder / ANSWERS),
            pretrained=evaluated.model,
            tokenizer=evaluated.tokenizer,
            batch_size=request.batch_size,
        )
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[name],
            num_fewshot=shots,
            limit=request.limit,
            task_manager=manager,
            apply_chat_template=request.apply_chat_template,
            log_samples=False,
        )
    groups = found.get("groups", {})
    tasks = {task: numbers for task, numbers in found["results"].items() if task not in groups}
    counts = {task: count["effective"] for task, count in found["n-samples"].items()}
    return {
        "groups": {group: _metrics(numbers, _counted(group, found, counts)) for group, numbers in groups.items()},
        "tasks": {task: _metrics(numbers, counts.get(task, 0)) for task, numbers in tasks.items()},
        "shots": max(found["n-shot"].values(), default=0),
    }


def _counted(group: str, found: Mapping[str, Any], counts: Mapping[str, int]) -> int:
    below = found["group_subtasks"].get(group, [])
    return sum(counts[name] if name in counts else _counted(name, found, counts) for name in below)


def _metrics(numbers: Mapping[str, Any], questions: int) -> dict[str, Any]:
    """The harness names a metric `acc,none`, where `none` is the filter that the answers went through."""
    metrics = {
        key.removesuffix(",none"): value if isinstance(value, (int, float)) else None
        for key, value in numbers.items()
        if "," in key
    }
    return {"name": numbers.get("alias", "").strip(" -"), "questions": questions, "metrics": metrics}


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence what the harness says about its own affairs, inside a `with` block; its bars stay."""
    from lm_eval import evaluator

    logger = logging.getLogger("lm_eval")
    level, commit = logger.level, evaluator.get_git_commit_hash
    logger.setLevel(logging.ERROR)
    evaluator.get_git_commit_hash = lambda: ""  # outside of a repository git complains, and the hash isn't used
    try:
        yield
    finally:
        logger.setLevel(level)
        evaluator.get_git_commit_hash = commit


@contextlib.contextmanager
def told_in_one_line(name: str) -> Iterator[None]:
    """Turn any exception from a task's files or data inside a `with` block into one PacaError."""
    try:
        yield
    except PacaError:
        raise
    except Exception as error:  # a task file may bring any mistake, in any library that reads it
        raise PacaError(f"The task {name!r} can't be scored: {type(error).__name__}: {one_line(error)}") from error
