"""What counts as the same code, and what does not."""

import functools

from paca.forwards.code import code_of


class One:
    def forward(self, x):
        """Says something."""
        return self.down(x) * 2


class Same:
    @functools.lru_cache  # noqa: B019 - stands for any decorator that says what it wraps
    def forward(self, x: int) -> int:
        # A comment.
        return self.down(
            x
        ) * 2  # fmt: skip


class Other:
    def forward(self, x):
        return self.down(x) * 3


class OtherArguments:
    def forward(self, x, y):
        return self.down(x) * 2


def test_comments_docstrings_decorators_and_layout_do_not_count():
    assert code_of(One.forward) == code_of(Same.forward)


def test_a_constant_or_an_argument_counts():
    assert len({code_of(kind.forward) for kind in (One, Other, OtherArguments)}) == 3


def test_several_functions_are_told_apart_from_one():
    assert code_of(One.forward, Other.forward) != code_of(One.forward)


def test_what_has_no_source_has_no_code():
    assert code_of(len) is None
    assert code_of(eval("lambda x: x")) is None
