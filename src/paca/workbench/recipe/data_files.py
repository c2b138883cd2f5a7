"""What is wrong with the files that a recipe takes its data from, to be told beside the recipe's own problems."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from paca.errors import PacaError
from paca.workbench.data.documents import Place, missing_path, read_sources
from paca.workbench.data.formats import FORMATS
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS
from paca.workbench.data.section import DataSection
from paca.workbench.recipe.tasks import IMAGES, PREFERENCE, TRAINING_PROBLEMS
from paca.workbench.vision.section import ImagesSection

Read = Callable[[str, str], object]


def file_problems(task: str, data: DataSection, images: ImagesSection) -> list[str]:
    """Read each local source of a recipe by itself, and say which can't be read and why; the Hub is not asked."""
    if task not in TRAINING_PROBLEMS:
        return []
    formats = PREFERENCE_FORMATS if task == PREFERENCE else FORMATS

    def read(name: str, split: str) -> None:
        if task != IMAGES:
            read_sources([name], Place(data.path, data.subset, split, data.format, formats))
        else:
            from paca.workbench.vision.sources import read_images

            read_images(name, data.subset, split, images)

    return list(_problems(data, read))


def _problems(data: DataSection, read: Read) -> Iterator[str]:
    for key, given, split in (("train", data.train, data.train_split), ("eval", data.eval, data.eval_split)):
        for name in [given] if isinstance(given, str) else given or []:
            if data.path is None and not os.path.exists(Path(name).expanduser()) and not _is_path(name):
                continue
            try:
                read(name, split)
            except PacaError as error:
                yield f"data.{key}: {error}"


def _is_path(name: str) -> bool:
    return missing_path(name, "file") is not None
