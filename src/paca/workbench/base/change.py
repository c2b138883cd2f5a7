"""Whether training changed a figure for the better."""

LEAST_SHARE = 1e-4  # of a figure: what reduced precision and the order of sums make of the same weights

IMPROVED, UNCHANGED, WORSE = "improved", "unchanged", "worse"


def change(before: float, after: float, form: str, lower_is_better: bool = True) -> str:
    """Say what training did to a figure: `improved`, `unchanged` or `worse`.

    `form` is how both are printed, as for `format`: what prints alike is unchanged.
    """
    if format(before, form) == format(after, form) or abs(after - before) <= LEAST_SHARE * min(
        abs(before), abs(after)
    ):
        return UNCHANGED
    better = after < before if lower_is_better else after > before
    return IMPROVED if better else WORSE
