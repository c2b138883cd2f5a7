"""Images that can't be read, or show nothing, are found before a run: in folders, in data sets, in arrays."""

import logging

import datasets
import numpy as np
import pytest
from PIL import Image
from tests.workbench.vision.tiny import CLASSES, make_pixels, write_folder

from paca import PacaError
from paca.workbench.vision.checks import readable
from paca.workbench.vision.folder import read_folder
from paca.workbench.vision.section import ImagesSection
from paca.workbench.vision.sources import from_data_set

pytestmark = pytest.mark.road("pictures")
GENERATOR = np.random.default_rng(1)


def folder_of(tmp_path, bad=None):
    root = write_folder(tmp_path / "photos", GENERATOR)
    if bad is not None:
        bad(root / "dark" / "bad.tif")
    return read_folder(root, "train")


def data_set_of(tmp_path, bad=None):
    """The same as a data set of encoded files."""
    labels = [0, 1, 2] * 4
    images = []
    for number, pixels in enumerate(make_pixels(labels, GENERATOR)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append({"bytes": (tmp_path / f"{number}.png").read_bytes(), "path": None})
    if bad is not None:
        bad(tmp_path / "bad.tif")
        images.append({"bytes": (tmp_path / "bad.tif").read_bytes(), "path": None})
        labels.append(0)
    features = datasets.Features(image=datasets.Image(), kind=datasets.ClassLabel(names=list(CLASSES)))
    made = datasets.Dataset.from_dict({"image": images, "kind": labels}, features=features)
    return from_data_set(made, ImagesSection(), "shapes:train")


def a_float(path):
    Image.fromarray(GENERATOR.random((8, 8), np.float32)).save(path)


def half_a_file(path):
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("source", [folder_of, data_set_of])
@pytest.mark.parametrize(("bad", "reason"), [(a_float, "floating-point"), (half_a_file, "can't be decoded")])
def test_what_cannot_be_read_is_skipped_counted_and_named(tmp_path, caplog, source, bad, reason):
    images = source(tmp_path, bad)
    with caplog.at_level(logging.WARNING):
        found = readable(images, 0.1)
    assert len(found) == 12
    assert len(found.skipped) == 1
    assert found.skipped[0].endswith(("bad.tif", "row 13"))
    assert f"1 of 13 images in {images.origin!r} cannot be read: {found.skipped[0]} (the first" in caplog.text
    assert reason in caplog.text
    with pytest.raises(PacaError, match=rf"1 of 13 .*{reason}.*That is more than images\.most_unreadable = 0\.05"):
        readable(images, 0.05)


@pytest.mark.parametrize("source", [folder_of, data_set_of])
def test_good_images_are_the_same_afterwards(tmp_path, source):
    images = source(tmp_path)
    found = readable(images, 0)
    assert (found.labels, found.skipped) == (images.labels, ())
    assert [np.asarray(found.read(n)).sum() for n in range(12)] == [
        np.asarray(images.read(n)).sum() for n in range(12)
    ]
    assert len(set(found.digests)) == 12


def write_grey(root, pixels):
    for label, values in enumerate(pixels):
        (root / str(label)).mkdir(parents=True)
        Image.fromarray(values).save(root / str(label) / "a.png")
    return root


@pytest.mark.parametrize(
    ("values", "brightest"),
    [
        (GENERATOR.integers(0, 4096, (2, 8, 8)).astype(np.uint16), r"1[56]"),  # 12 bits in 16
        (GENERATOR.integers(0, 2, (2, 8, 8)).astype(np.uint8), "1"),  # a mask of 0 and 1
    ],
)
def test_images_that_are_nearly_black_are_refused(tmp_path, values, brightest):
    with pytest.raises(PacaError, match=rf"nearly black, their brightest value is {brightest} of 255"):
        readable(read_folder(write_grey(tmp_path / "dim", values), "train"), 0)
    values[1, 0, 0] = np.iinfo(values.dtype).max  # one bright pixel, and they are dark pictures among others
    assert len(readable(read_folder(write_grey(tmp_path / "lit", values), "train"), 0)) == 2
