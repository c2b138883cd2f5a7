"""Tensors from images: size, normalisation, and variation that depends on seed, epoch and position alone."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from paca.workbench.vision.images import from_array
from paca.workbench.vision.pixels import PixelDataset, PixelFormat, make_transform

FORMAT = PixelFormat(8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def images(count=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 10, 3), dtype=np.uint8)
    return from_array(pixels, list(range(count)), [str(label) for label in range(count)], "noise")


def test_one_colour_is_normalised_by_channel():
    plain = from_array(np.full((1, 4, 4, 3), [255, 0, 51], np.uint8), [0], ["a"], "plain")
    row = PixelDataset(plain, make_transform(FORMAT))[0]
    assert row["pixel_values"].shape == (3, 8, 8)
    assert row["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(row["pixel_values"][:, 0, 0], torch.tensor([1.0, -1.0, 0.2]))


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_variation_depends_on_seed_epoch_and_position_alone(augment):
    def rows(seed=0, epoch=0, order=range(3)):
        data = PixelDataset(images(), make_transform(FORMAT, augment), seed)
        data.set_epoch(epoch)
        found = {position: data[position]["pixel_values"] for position in order}
        return torch.stack([found[position] for position in range(3)])

    torch.manual_seed(1)
    first = rows()
    torch.manual_seed(2)
    assert torch.equal(first, rows(order=(2, 0, 1)))
    assert any(not torch.equal(first, rows(epoch=epoch)) for epoch in range(1, 4))
    assert any(not torch.equal(first, rows(seed=seed)) for seed in (1, 2, 2**32 - 1))


def test_varying_draws_nothing_from_the_global_generator():
    data = PixelDataset(images(), make_transform(FORMAT, "crop"))
    state = torch.get_rng_state()
    data[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_images_are_never_varied():
    data = PixelDataset(images(), make_transform(FORMAT))
    before = data[1]["pixel_values"]
    data.set_epoch(5)
    assert torch.equal(before, data[1]["pixel_values"])


def test_a_batch():
    data = PixelDataset(images(), make_transform(FORMAT))
    batch = default_collate([data[position] for position in (2, 0)])
    assert batch["labels"].tolist() == [2, 0]
    assert torch.equal(batch["pixel_values"][1], data[0]["pixel_values"])
