"""Evaluates a model: checks all that is asked for, then measures one after another, each resumably."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.workbench.evaluation.jobs import Job, prepare
from paca.workbench.evaluation.request import Request
from paca.workbench.evaluation.subject import Subject
from paca.workbench.evaluation.work_folder import RESULT, finish, open_work
from paca.workbench.training.report import versions


@dataclass(frozen=True)
class Evaluated:
    """What came of one evaluation.

    Args:
        name: The task.
        file: Holds the result as JSON.
        result: The same.
        lines: The same for people.
    """

    name: str
    file: Path
    result: dict[str, Any]
    lines: list[str]


def evaluate(request: Request) -> Iterator[Evaluated]:
    """Measure what is asked for. What an earlier process measured is not measured again.

    Args:
        request: What is asked for.

    Yields:
        Evaluated: One after another, as soon as each is finished.

    Raises:
        PacaError: If something can't be done; before a model is loaded, where that can be told by then.
    """
    subject = Subject(request.model, request.dtype, request.merged)
    jobs = prepare(request)
    place = Path(request.output).expanduser() if request.output else subject.default_folder()
    model = subject.identity()
    known = [open_work(place / job.folder, {"model": model, **job.settings}, request.overwrite) for job in jobs]
    for job, result in zip(jobs, known, strict=True):
        yield _finished(job, place / job.folder, result or _measured(job, subject, place / job.folder))


def _measured(job: Job, subject: Subject, folder: Path) -> dict[str, Any]:
    result = {
        "task": job.name,
        "model": {"base": subject.source.base, "adapter": str(subject.source.adapter or "") or None},
        **job.measure(subject, folder),
        "versions": versions(),
    }
    finish(folder, result)
    return result


def _finished(job: Job, folder: Path, result: dict[str, Any]) -> Evaluated:
    return Evaluated(job.name, folder / RESULT, result, job.lines(result))
