"""What the benchmarks share: the command line, the files, the tables."""

import argparse
import json

import pytest
import torch

from benchmark import (
    add_threads_and_json,
    benchmark,
    make_parser,
    print_table,
    read_results,
    write_results,
)
from methods import METHODS
from paca import PacaError


def parser():
    return add_threads_and_json(make_parser("benchmarks/some.py", "What it measures.", methods=METHODS))


def test_the_help_is_the_docstring_and_a_list_of_what_can_be_named():
    text = parser().format_help()
    assert text.startswith("usage: python benchmarks/some.py ")
    assert "What it measures." in text
    assert "methods:\n  floor              forward and input gradients" in text


def test_what_is_measured_is_written_to_the_file_that_is_named(tmp_path):
    @benchmark(parser)
    def main(arguments: argparse.Namespace):
        """Measure."""
        return {"threads": torch.get_num_threads()}

    before = torch.get_num_threads()
    file = tmp_path / "figures.json"
    try:
        assert main(["--threads", "2", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(before)
    assert json.loads(file.read_text()) == {"threads": 2}
    assert list(tmp_path.iterdir()) == [file], "no temporary file is left"
    assert main([]) == 0
    assert main.__doc__ == "Measure."


def test_only_a_wrong_argument_is_told_without_a_traceback(capsys):
    @benchmark(parser)
    def wrong(arguments: argparse.Namespace):
        raise PacaError("there is no such thing")

    @benchmark(parser)
    def broken(arguments: argparse.Namespace):
        raise ValueError("a mistake of the benchmark's own")

    with pytest.raises(SystemExit) as exit_:
        wrong([])
    assert exit_.value.code == 2
    assert "there is no such thing" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a mistake of the benchmark's own"):
        broken([])


def test_results_are_found_again(tmp_path):
    file = tmp_path / "results.json"
    assert read_results(file) == read_results(None) == {}
    write_results(file, {"ü": 1})
    write_results(None, {"ü": 2})
    assert read_results(file) == {"ü": 1}


def test_each_row_is_printed_as_soon_as_it_is_there(capsys):
    def rows():
        yield "a", "1", "x"
        assert "| a | 1 | x |" in capsys.readouterr().out
        yield "b", "2", "y"

    print_table(("name", "count", "note"), rows(), text=["note"])
    assert capsys.readouterr().out == "| b | 2 | y |\n"
    print_table(("name", "count", "note"), [], text=["note"])
    assert capsys.readouterr().out == "| name | count | note |\n| --- | ---: | --- |\n"
