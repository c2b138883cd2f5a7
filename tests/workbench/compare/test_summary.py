"""Rows, cells and failures."""

import math

from paca.errors import PacaError
from paca.workbench.compare.columns import COLUMNS, cell
from paca.workbench.compare.failures import describe_failure
from paca.workbench.compare.report import finite
from paca.workbench.compare.summary import summarize


def test_cells():
    columns = {column.key: column for column in COLUMNS}
    assert cell({"loss": 2.5, "loss_spread": 0.01}, columns["loss"]) == "2.5000 ± 0.0100"
    assert cell({"loss": 2.5}, columns["loss"]) == "2.5000"
    assert cell({"to_floor": 1.0625, "to_floor_error": 0.01}, columns["to_floor"]) == "1.062 ± 0.010"
    assert cell({}, columns["loss"]) == "–"
    assert cell({"peak_bytes": 3 * 2**20}, columns["peak_bytes"]) == "3.0"
    assert cell({"rate": 5e-3}, columns["rate"]) == "0.005"


def test_nothing_measured_is_an_empty_summary():
    assert summarize([]) == {"methods": [], "noise": None, "pareto": [], "best": {}, "machine": None}


def test_failures_are_one_line_and_tell_memory_apart():
    assert describe_failure(RuntimeError("CUDA out of memory.\nTried 4 GB"))["out_of_memory"]
    assert describe_failure(MemoryError())["error"] == "out of memory: MemoryError"
    assert describe_failure(PacaError("no\nsuch thing")) == {"error": "no such thing", "out_of_memory": False}
    assert describe_failure(KeyError("x"))["error"] == "KeyError: 'x'"


def test_what_json_does_not_have_becomes_none():
    assert finite({"a": [math.inf, 1.0, (math.nan,)]}) == {"a": [None, 1.0, [None]]}
