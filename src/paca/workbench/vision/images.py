"""Labelled images, wherever they lie: in memory, in files, in a data set. Decoded one at a time."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paca.workbench.vision.rgb import open_rgb


@dataclass(frozen=True)
class Images:
    """Images of known classes.

    Args:
        read: Gives the image at a position as an RGB `PIL.Image`.
        name: Says what a message calls the image at a position.
        labels: The class of each, an index into `classes`.
        classes: The classes' names.
        origin: What was read, as a message may call it.
        digests: Of the pixels of each, as text; empty before they were decoded.
        skipped: Those that could not be read and were left out, by name.
    """

    read: Callable[[int], Any]
    name: Callable[[int], str]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    origin: str
    digests: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def choose(self, positions: Sequence[int]) -> "Images":
        """Keep the images at these positions, in that order; nothing is decoded or copied."""
        chosen = tuple(positions)
        return replace(
            self,
            read=lambda position: self.read(chosen[position]),
            name=lambda position: self.name(chosen[position]),
            labels=tuple(self.labels[position] for position in chosen),
            digests=tuple(self.digests[position] for position in chosen if self.digests),
        )


def digest_of(size: Sequence[int], pixels: bytes) -> str:
    """A short text that other pixels have another of."""
    return hashlib.blake2b(str(tuple(size)).encode() + pixels, digest_size=8).hexdigest()


def from_array(pixels: Any, labels: Sequence[int], classes: Sequence[str], origin: str) -> Images:
    """Images that lie in memory: bytes, shape `(n, height, width, 3)`, or `(n, height, width)` for shades of grey."""
    from PIL import Image

    return Images(
        read=lambda position: Image.fromarray(pixels[position]).convert("RGB"),
        name=lambda position: f"{origin}[{position}]",
        labels=tuple(int(label) for label in labels),
        classes=tuple(str(name) for name in classes),
        origin=origin,
        digests=tuple(digest_of(image.shape, image.tobytes()) for image in pixels),
    )


def from_files(paths: Sequence[Any], labels: Sequence[int], classes: Sequence[str], origin: str) -> Images:
    """Images in files, opened when they are needed."""
    return Images(
        read=lambda position: open_rgb(paths[position]),
        name=lambda position: str(paths[position]),
        labels=tuple(labels),
        classes=tuple(classes),
        origin=origin,
    )
