"""`python -m tests.road [KIND …]` runs the tests marked `road` and prints one line for each kind of `kinds.py`.

pytest's own report follows if a test failed; the exit status is pytest's, and 1 where a kind has no tests.
"""

import argparse
import contextlib
import io
import sys
from collections import Counter, defaultdict

import pytest
from tests.paths import ROOT
from tests.road.kinds import KINDS

TESTS = ROOT / "tests"


class Outcomes:
    """Chooses the tests of some kinds, and counts how those of each kind went: a pytest plugin."""

    def __init__(self, kinds):
        self.kinds = kinds
        self.by_kind = defaultdict(Counter)
        self._kind_of = {}

    def pytest_collection_modifyitems(self, config, items):
        """Keep the tests of the chosen kinds; a kind that `KINDS` does not list is an error."""
        named = {item: [kind for mark in item.iter_markers("road") for kind in mark.args] for item in items}
        unknown = {kind for kinds in named.values() for kind in kinds} - KINDS.keys()
        if unknown:
            raise pytest.UsageError(f"not in tests/road/kinds.py: {', '.join(sorted(unknown))}")
        self._kind_of = {item.nodeid: [kind for kind in kinds if kind in self.kinds] for item, kinds in named.items()}
        items[:] = [item for item in items if self._kind_of[item.nodeid]]

    def pytest_runtest_logreport(self, report):
        """Count each test once: by its call, or by a setup that did not reach it, or a teardown that failed."""
        if report.when == "call" or not report.passed:
            for kind in self._kind_of[report.nodeid]:
                self.by_kind[kind][report.outcome] += 1

    def lines(self):
        """Return one line for each kind, the number of each outcome first."""
        for kind in self.kinds:
            counts = self.by_kind[kind]
            told = ", ".join(
                f"{counts[outcome]} {outcome}" for outcome in ("failed", "passed", "skipped") if counts[outcome]
            )
            yield f"{kind:<16} {told or 'no tests':<24} {KINDS[kind]}"


def files():
    """Return the test files that bear the marker, so that no others are imported."""
    return [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "mark.road(" in path.read_text("utf-8")]


def main(arguments):
    """Run the tests of the kinds named on the command line, by default of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.road", description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    chosen = parser.parse_args(arguments).kinds or list(KINDS)
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown:
        parser.error(f"unknown kinds: {', '.join(unknown)}; known: {', '.join(KINDS)}")
    outcomes, report = Outcomes(chosen), io.StringIO()
    with contextlib.redirect_stdout(report):
        status = pytest.main([f"--rootdir={ROOT}", "-q", "-m", "road", *files()], plugins=[outcomes])
    print("\n".join(outcomes.lines()))
    if status != pytest.ExitCode.OK:
        print(report.getvalue())
    untested = [kind for kind in chosen if not outcomes.by_kind[kind]]
    return int(status) or int(bool(untested))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
