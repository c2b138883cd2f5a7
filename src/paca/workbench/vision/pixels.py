"""From images to the tensors that a model takes: resized, varied, normalised.

How a training image is varied depends on the seed, the epoch and its position alone. So a run that was interrupted
sees the same images as one that was not, whatever was sampled or fetched ahead in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paca.workbench.vision.images import Images

_APART = 1_000_003  # a prime larger than most data sets keeps the draws of different epochs and seeds apart


@dataclass(frozen=True)
class PixelFormat:
    """What a model expects of its input.

    Args:
        size: Height and width in pixels.
        mean: Of each channel, of values between 0 and 1.
        std: Of each channel.
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


def make_transform(pixel_format: PixelFormat, augment: str = "none") -> Callable[[Any], Tensor]:
    """Make the function from an RGB `PIL.Image` to float32 of shape `(3, size, size)`.

    Unless `augment`, a key of `section.AUGMENTATIONS`, varies images, the whole image is shown: it is resized to a
    square, not cropped.
    """
    from torchvision.transforms import InterpolationMode, v2

    size, bicubic = (pixel_format.size, pixel_format.size), InterpolationMode.BICUBIC
    varied: dict[str, list[Any]] = {
        "none": [v2.Resize(size, bicubic)],
        "flip": [v2.Resize(size, bicubic), v2.RandomHorizontalFlip()],
        "crop": [v2.RandomResizedCrop(size, scale=(0.25, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()],
    }
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*varied[augment], *to_tensor, v2.Normalize(pixel_format.mean, pixel_format.std)])


class PixelDataset(Dataset[dict[str, Any]]):
    """Images as a model's arguments, `pixel_values` and `labels`.

    Args:
        images: The images.
        transform: What `make_transform` made.
        seed: Fixes how images are varied.
    """

    def __init__(self, images: Images, transform: Callable[[Any], Tensor], seed: int = 0) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> dict[str, Any]:
        image = self.images.read(position)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(((self.seed * _APART + self.epoch) * _APART + position) % 2**63)
            pixels = torch.as_tensor(self.transform(image))
        return {"pixel_values": pixels, "labels": self.images.labels[position]}

    def set_epoch(self, epoch: int) -> None:
        """Vary the images anew; the data loader calls it with the epoch, counted from 0."""
        self.epoch = epoch
