"""Image folders: one folder per class. Files that cannot be decoded are skipped and named; too many are an error."""

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from paca.errors import PacaError, first_few
from paca.workbench.vision.images import Images, from_files, open_rgb

logger = logging.getLogger(__name__)

MOST_NAMED = 5
_BAR_FROM = 500  # files; fewer are decoded before a bar would be read


def read_folder(folder: Path, split: str, most_unreadable: float) -> Images:
    """Read `folder/CLASS/file` or, where there is a folder named like the split, `folder/SPLIT/CLASS/file`.

    Every file is decoded once, so that a damaged one shows now and not in the middle of a run. A PacaError if there
    are no classes or no images, or a larger share than `most_unreadable` cannot be read.
    """
    root = folder / split if (folder / split).is_dir() else folder
    files = _image_files(root)
    classes = sorted({path.relative_to(root).parts[0] for path in files})
    if not files:
        raise PacaError(
            f"The folder {str(root)!r} holds no images in folders named after classes; expected for example "
            f"{str(root / 'cat' / '1.jpg')!r}."
        )
    readable = list(_with_progress(files))
    skipped = [str(path) for path, good in zip(files, readable, strict=True) if not good]
    _report_unreadable(root, skipped, len(files), most_unreadable)
    kept = [path for path, good in zip(files, readable, strict=True) if good]
    labels = [classes.index(path.relative_to(root).parts[0]) for path in kept]
    return replace(from_files(kept, labels, classes, str(root)), skipped=tuple(skipped))


def _image_files(root: Path) -> list[Path]:
    from PIL import Image

    suffixes = set(Image.registered_extensions())
    return sorted(
        path
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file()
    )


def _with_progress(files: list[Path]) -> Iterator[bool]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results: Iterable[bool] = pool.map(_is_readable, files)
        if len(files) >= _BAR_FROM:
            from rich.progress import track

            results = track(results, description="checking images", total=len(files), transient=True)
        yield from results


def _is_readable(path: Path) -> bool:
    try:
        open_rgb(path)
    except Exception:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, …
        return False
    return True


def _report_unreadable(root: Path, skipped: list[str], total: int, most: float) -> None:
    if not skipped:
        return
    found = f"{len(skipped)} of {total} image files in {str(root)!r} cannot be read: {first_few(skipped, MOST_NAMED)}"
    if len(skipped) > most * total:
        raise PacaError(
            f"{found}. That is more than images.most_unreadable = {most:g} allows; repair or remove them, or raise it."
        )
    logger.warning("%s; they are skipped", found)
