"""The recipe's section `data`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paca.workbench.base.messages import suggestion
from paca.workbench.data.formats import FORMATS, Formats


@dataclass(frozen=True)
class DataSection:
    """What to train on, and what to hold out.

    Args:
        train: A built-in (`python-reference`), a file, a folder, a data set's name on the Hub, or a list of these.
        eval: Held-out data, named like `train`. Without it, part of `train` is held out.
        holdout_every: Hold out every Nth row of `train`: 10 holds out the 1st, 11th, 21st. A plain text file has
            blocks of `training.max_length` tokens for rows.
        eval_limit: Evaluate at most this many held-out sequences, evenly spread; all of them when omitted.
        subset: The configuration of a data set that has several.
        train_split: Which split of a data set `train` is.
        eval_split: Which split of a data set `eval` is.
        path: `train` and `eval` are files and folders in this one.
        format: A name in `FORMATS`; told from the fields of the first row when omitted.
        whole_rows: Leave out rows that are longer than `training.max_length`, where otherwise they are cut.
        weights: One for each entry of `train`, which are mixed in this proportion; one after another when omitted.
    """

    train: str | list[str]
    eval: str | list[str] | None = None
    holdout_every: int | None = None
    eval_limit: int | None = None
    subset: str | None = None
    train_split: str = "train"
    eval_split: str = "test"
    path: str | None = None
    format: str | None = None
    whole_rows: bool = False
    weights: list[float] | None = None


def data_problems(section: DataSection, formats: Formats = FORMATS) -> list[str]:
    """Say what is wrong with the values of a recipe's `data` section, whose types are checked already.

    `formats` are those that rows may have for the recipe's task.
    """
    problems = []
    if section.holdout_every is not None and section.holdout_every < 2:
        problems.append(f"data.holdout_every = {section.holdout_every}: expected at least 2; 10 holds out every tenth")
    if section.eval_limit is not None and section.eval_limit < 1:
        problems.append(f"data.eval_limit = {section.eval_limit}: expected at least 1; leave it out to evaluate all")
    if (section.eval is None) == (section.holdout_every is None):
        wrong = "neither is given" if section.eval is None else "both are given"
        problems.append(
            f"data.eval and data.holdout_every: {wrong}, expected one of them; "
            "data.holdout_every=10 holds out every tenth row of data.train"
        )
    problems += [
        f"data.{key} = {value!r}: expected at least one name"
        for key, value in (("train", section.train), ("eval", section.eval))
        if value == [] or value == ""
    ]
    if section.format is not None and section.format not in formats:
        problems.append(
            f"data.format = {section.format!r}: expected one of {', '.join(formats)}"
            f"{suggestion(section.format, formats)}"
        )
    return problems + _weight_problems(section)


def _weight_problems(section: DataSection) -> list[str]:
    if section.weights is None:
        return []
    if not isinstance(section.train, list) or len(section.train) != len(section.weights):
        count = len(section.train) if isinstance(section.train, list) else 1
        return [f"data.weights has {len(section.weights)} numbers for {count} entries of data.train; give each one"]
    wrong = [weight for weight in section.weights if not (math.isfinite(weight) and weight > 0)]
    return [
        f"data.weights holds {weight!r}: expected numbers above 0; leave out what is not to be used"
        for weight in wrong[:1]
    ]
