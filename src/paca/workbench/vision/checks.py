"""Decodes every image once before a run, so that a bad one shows now and not in the middle of it.

Images that cannot be decoded are skipped and named; too many are an error, and so are images that show nothing.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from paca.errors import PacaError, first_few
from paca.workbench.base.messages import one_line
from paca.workbench.vision.images import Images, digest_of

logger = logging.getLogger(__name__)

MOST_NAMED = 5
NEARLY_BLACK = 16  # of 255: what 12 bits in 16 come to, and more than 4 in 8
_BAR_FROM = 500  # images; fewer are decoded before a bar would be read


@dataclass(frozen=True)
class _Decoded:
    """What came of one image.

    Args:
        problem: Why it can't be read; None for a good one.
        brightest: The largest value of any channel, of 255.
        digest: Of its pixels.
    """

    problem: str | None
    brightest: int = 0
    digest: str = ""


def readable(images: Images, most_unreadable: float) -> Images:
    """Leave out the images that cannot be read, name them, and digest the others.

    A PacaError if that is a larger share than `most_unreadable`, or all that can be read is nearly black.
    """
    decoded = list(_with_progress(images))
    good = [position for position, found in enumerate(decoded) if found.problem is None]
    skipped = [position for position, found in enumerate(decoded) if found.problem is not None]
    kept = replace(
        images.choose(good),
        digests=tuple(decoded[position].digest for position in good),
        skipped=tuple(map(images.name, skipped)),
    )
    if skipped:
        first = decoded[skipped[0]].problem
        _report_unreadable(kept, f"{first_few(kept.skipped, MOST_NAMED)} (the first {first})", most_unreadable)
    check_brightness(images.origin, max((decoded[position].brightest for position in good), default=255))
    return kept


def check_brightness(origin: str, brightest: int) -> None:
    """Refuse images whose brightest value, of 255, says that their values go to another white than 255 does."""
    if brightest <= NEARLY_BLACK:
        raise PacaError(
            f"The images of {origin!r} are nearly black, their brightest value is {brightest} of 255: 12 bits in a "
            "16-bit file, or a few values in bytes? Scale them to the whole range of their type."
        )


def _with_progress(images: Images) -> Iterator[_Decoded]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results: Iterable[_Decoded] = pool.map(lambda position: _decode(images, position), range(len(images)))
        if len(images) >= _BAR_FROM:
            from rich.progress import track

            results = track(results, description="checking images", total=len(images), transient=True)
        yield from results


def _decode(images: Images, position: int) -> _Decoded:
    try:
        image = images.read(position)
    except PacaError as error:
        return _Decoded(str(error))
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, …
        return _Decoded(f"can't be decoded: {one_line(error)}")
    return _Decoded(None, max(high for _, high in image.getextrema()), digest_of(image.size, image.tobytes()))


def _report_unreadable(kept: Images, named: str, most: float) -> None:
    count, total = len(kept.skipped), len(kept.skipped) + len(kept)
    found = f"{count} of {total} images in {kept.origin!r} cannot be read: {named}"
    if count > most * total:
        raise PacaError(
            f"{found}. That is more than images.most_unreadable = {most:g} allows; repair or remove them, or raise it."
        )
    logger.warning("%s; they are skipped", found)
