"""The largest whole number that fits, with few trials: memory is nearly a straight line over sequence and batch."""

from collections.abc import Callable


def largest_that_fits(excess: Callable[[int], int], step: int, most: int) -> int:
    """Find the largest multiple of `step` that fits; what fits at one size must fit at every smaller one.

    A bracket is narrowed by the line through the last two trials, and by halving it every third time, so that a bent
    curve costs no more than three times what bisection does.

    Args:
        excess: By how much a size is too much; it fits at 0 and below.
        step: Sizes are multiples of it.
        most: The largest size to try.

    Returns:
        The size; 0 when not even `step` fits.
    """
    tried = [(1, excess(step))]
    if tried[0][1] > 0:
        return 0
    good, bad = 1, most // step + 1
    candidate = min(8, bad - 1)
    while bad - good > 1:
        over = excess(candidate * step)
        good, bad = (candidate, bad) if over <= 0 else (good, candidate)
        tried.append((candidate, over))
        guess = _root(tried[-2], tried[-1]) if len(tried) % 3 else (good + bad) // 2
        candidate = max(good + 1, min(bad - 1, guess))
    return good * step


def _root(first: tuple[int, int], second: tuple[int, int]) -> int:
    """Where the line through two trials crosses zero, rounded down."""
    rise, run = second[1] - first[1], second[0] - first[0]
    return second[0] - -(-second[1] * run // rise) if rise else second[0]
