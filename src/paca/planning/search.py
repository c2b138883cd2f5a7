"""The largest whole number that fits, by bisection."""

from collections.abc import Callable


def largest_that_fits(fits: Callable[[int], bool], step: int, most: int) -> int:
    """Find the largest multiple of `step` that fits; what fits at one size must fit at every smaller one.

    Args:
        fits: Whether a size fits.
        step: Sizes are multiples of it.
        most: The largest size to try.

    Returns:
        The size; 0 when not even `step` fits.
    """
    if not fits(step):
        return 0
    good, bad = 1, 2
    while bad * step <= most and fits(bad * step):
        good, bad = bad, 2 * bad
    bad = min(bad, most // step + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle * step) else (good, middle)
    return good * step
