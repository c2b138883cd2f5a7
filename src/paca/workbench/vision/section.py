"""What a recipe says about images: their size, how they are varied, and what batch normalisation does."""

from dataclasses import dataclass

AUGMENTATIONS = {
    "none": "every image as it is",
    "flip": "mirrored half of the time",
    "crop": "mirrored half of the time, and a random part of at least a quarter of the area",
}
BATCH_NORM = {
    "frozen": "pretrained statistics, scale and shift; nothing of its input is kept for backward",
    "train": "statistics of the batch, running ones updated; scale and shift trained and saved with the adapter",
}
WEIGHTS = {"pretrained": "of the checkpoint", "random": "none but the architecture's own start"}


@dataclass(frozen=True)
class ImagesSection:
    """How images reach a model.

    Args:
        size: Height and width in pixels; the model's own when omitted.
        augment: How training images are varied, a key of `AUGMENTATIONS`.
        batch_norm: What the layers of batch normalisation do in training, a key of `BATCH_NORM`.
        weights: What the model starts from, a key of `WEIGHTS`.
        image_column: The column of a data set that holds images, where there are several.
        label_column: The column of a data set that holds classes, where there are several.
        most_unreadable: The share of an image folder's files that may be unreadable; they are skipped and named.
    """

    size: int | None = None
    augment: str = "flip"
    batch_norm: str = "frozen"
    weights: str = "pretrained"
    image_column: str | None = None
    label_column: str | None = None
    most_unreadable: float = 0.01


def images_problems(section: ImagesSection) -> list[str]:
    """Say what is wrong with the values of a recipe's `images` section, whose types are checked already."""
    problems = [
        f"images.{key} = {getattr(section, key)!r}: expected one of {', '.join(choices)}"
        for key, choices in (("augment", AUGMENTATIONS), ("batch_norm", BATCH_NORM), ("weights", WEIGHTS))
        if getattr(section, key) not in choices
    ]
    if section.size is not None and section.size < 1:
        problems.append(f"images.size = {section.size}: expected at least 1; leave it out for the model's own")
    if not 0 <= section.most_unreadable <= 1:
        problems.append(f"images.most_unreadable = {section.most_unreadable}: expected a share between 0 and 1")
    return problems
