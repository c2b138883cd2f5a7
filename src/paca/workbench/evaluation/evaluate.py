"""Evaluates a model: checks all that is asked for, then measures one after another, each resumably."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.workbench.base.locks import locked
from paca.workbench.evaluation.evaluated_model import EvaluatedModel, slug
from paca.workbench.evaluation.evaluations import Evaluation, prepare
from paca.workbench.evaluation.request import Request
from paca.workbench.evaluation.work_folder import RESULT, finish, open_work
from paca.workbench.training.adapted import SharedBase
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
        PacaError: If something can't be done; before a model is loaded, where that can be known then.
    """
    bases = SharedBase()
    names = dict.fromkeys((request.model, *request.more))
    models = [EvaluatedModel(name, request.dtype, request.merged, bases) for name in names]
    evaluations = prepare(request)
    with contextlib.ExitStack() as held:
        opened = []
        for model in models:
            place = _place(model, request, several=len(models) > 1)
            held.enter_context(locked(place, "evaluation"))
            identity = model.identity()
            known = [
                open_work(place / evaluation.folder, {"model": identity, **evaluation.settings}, request.overwrite)
                for evaluation in evaluations
            ]
            opened.append((model, place, known))
        for model, place, known in opened:
            for evaluation, result in zip(evaluations, known, strict=True):
                folder = place / evaluation.folder
                finished = result is not None and not evaluation.outdated(result)
                found = result if result is not None and finished else _measured(evaluation, model, folder)
                yield Evaluated(evaluation.name, folder / RESULT, found, evaluation.lines(found))
            model.release()


def _place(model: EvaluatedModel, request: Request, several: bool) -> Path:
    """Where a model's results go: of several, each has a folder of its own in the one that is named."""
    if not request.output:
        return model.default_folder()
    place = Path(request.output).expanduser()
    return place / slug(model.name) if several else place


def _measured(evaluation: Evaluation, model: EvaluatedModel, folder: Path) -> dict[str, Any]:
    result = {
        "task": evaluation.name,
        "model": {"base": model.source.base, "adapter": str(model.source.adapter or "") or None},
        **evaluation.measure(model, folder),
        "versions": versions(),
    }
    finish(folder, result)
    return result
