"""From a recipe's data section to training and held-out images. Every class is held out from and evaluated alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from paca.errors import PacaError, first_few
from paca.workbench.data.prepare import hold_out, spread
from paca.workbench.data.section import DataSection
from paca.workbench.vision.images import Images
from paca.workbench.vision.section import ImagesSection
from paca.workbench.vision.sources import read_images


@dataclass(frozen=True)
class ImageData:
    """What a run trains on and what it is evaluated on.

    Args:
        train: Training images.
        held_out: Those that are evaluated.
        held_out_total: How many held-out images there are in all.
    """

    train: Images
    held_out: Images
    held_out_total: int


def read_data(section: DataSection, images: ImagesSection) -> ImageData:
    """Read the training and held-out images of a recipe, which have the same classes.

    A PacaError if something is missing, if there is but one class, or if the two parts have other classes or are one
    and the same.
    """
    source = _one_source("train", section.train)
    train = read_images(source, section.subset, section.train_split, images)
    if section.eval is None:
        kept, held = hold_out_of_classes(train.labels, section.holdout_every)
        train, held_out = train.choose(kept), train.choose(held)
    else:
        held_out = read_images(_one_source("eval", section.eval), section.subset, section.eval_split, images)
        _check_together(train, held_out, section)
    if not len(train) or not len(held_out):
        raise PacaError(
            f"data.train = {source!r} has too few images of each class to hold one of every {section.holdout_every} "
            "out and train on the rest; take more, or name held-out data with data.eval."
        )
    _check_classes(train, section)
    evaluated = spread_over_classes(held_out.labels, section.eval_limit)
    return ImageData(train, held_out.choose(evaluated), len(held_out))


def hold_out_of_classes(labels: Sequence[int], every: int | None) -> tuple[list[int], list[int]]:
    """Split off the first of each `every` images of each class; positions kept and held out, both in order.

    10 holds out the 1st, 11th, 21st of a class; None holds out nothing.
    """
    split = [hold_out(positions, every) for positions in _by_class(labels)]
    return sorted(p for kept, _ in split for p in kept), sorted(p for _, held in split for p in held)


def spread_over_classes(labels: Sequence[int], most: int | None) -> list[int]:
    """Choose positions of at most `most` images, from each class in proportion, in order; None chooses all."""
    return sorted(spread([position for positions in _by_class(labels) for position in positions], most))


def _by_class(labels: Sequence[int]) -> list[list[int]]:
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(label, []).append(position)
    return [positions[label] for label in sorted(positions)]


def _check_classes(train: Images, section: DataSection) -> None:
    present = set(train.labels)
    if len(present) == 1:
        name = train.classes[present.pop()]
        raise PacaError(
            f"data.train = {section.train!r} has images of one class only, {name!r}, so there is nothing to tell "
            "apart; add images of another class, in a folder of its own."
        )


def _one_source(key: str, source: str | list[str]) -> str:
    if isinstance(source, str):
        return source
    raise PacaError(f"data.{key} = {source!r}: images come from one source; put the files into one folder per class.")


def _check_together(train: Images, held_out: Images, section: DataSection) -> None:
    if train.origin == held_out.origin:
        raise PacaError(
            f"data.train and data.eval are the same images, {train.origin!r}; hold some out with data.holdout_every, "
            "or name other ones."
        )
    if train.classes != held_out.classes:
        only_train = [name for name in train.classes if name not in held_out.classes]
        only_eval = [name for name in held_out.classes if name not in train.classes]
        raise PacaError(
            f"data.train = {section.train!r} has {len(train.classes)} classes, data.eval = {section.eval!r} has "
            f"{len(held_out.classes)}; only in the first: {first_few(only_train) or 'none'}; only in the second: "
            f"{first_few(only_eval) or 'none'}. They must be the same, in the same order."
        )
