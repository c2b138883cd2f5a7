"""The largest whole number that fits, with few trials."""

import math
from collections.abc import Callable


def largest_that_fits(excess: Callable[[int], float], step: int, most: int, growth: int = 2) -> int:
    """Find the largest multiple of `step` that fits; what fits at one size must fit at every smaller one.

    Memory is nearly a straight line over sequence and batch, so the line through the last two trials tells where to
    look next. Every third trial grows or halves the bracket instead, so that a bent curve costs no more than three
    times what bisection does; and so does every trial after one that only tells whether a size fits.

    Args:
        excess: By how much a size is too much; it fits at 0 and below. Infinite where only that is known.
        step: Sizes are multiples of it.
        most: The largest size to try.
        growth: How much larger the next trial is as long as everything fits.

    Returns:
        The size; 0 when not even `step` fits.
    """
    good, bad = 0, most // step + 1
    last, candidate, trials = (0, -math.inf), 1, 0
    while bad - good > 1:
        before, last, trials = last, (candidate, excess(candidate * step)), trials + 1
        good, bad = (candidate, bad) if last[1] <= 0 else (good, candidate)
        rise = last[1] - before[1]
        if trials % 3 and rise and math.isfinite(rise):
            guess = int(last[0] - -(-last[1] * (last[0] - before[0]) // rise))
        else:
            guess = (good + bad) // 2 if bad <= most // step else good * growth
        candidate = max(good + 1, min(bad - 1, guess))
    return good * step
