"""Every mode of a picture shows the same in bytes, or is refused; nothing is cut off at 255."""

import io

import numpy as np
import pytest
from PIL import Image

from paca import PacaError
from paca.workbench.vision.rgb import to_rgb

pytestmark = pytest.mark.road("pictures")
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
EIGHT_BIT = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA")


def decoded(image, kind):
    """The picture as it comes out of a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind)
    file.seek(0)
    return Image.open(file)


def assert_shows_the_ramp(image, tolerance=0):
    shown = np.asarray(to_rgb(image)).astype(int)
    assert np.abs(shown - RAMP[..., None].astype(int)).max() <= tolerance


@pytest.mark.parametrize("mode", EIGHT_BIT)
def test_eight_bits_as_they_are(mode):
    if mode == "1":
        image = Image.fromarray(RAMP).point(lambda value: 255 * (value > 99)).convert("1")
        assert np.array_equal(np.asarray(to_rgb(image))[..., 0], 255 * (RAMP > 99))
        return
    source = Image.fromarray(RAMP).convert("RGB" if mode in ("CMYK", "YCbCr", "HSV") else "L")
    assert_shows_the_ramp(source.convert("LA" if mode == "PA" else mode).convert(mode), tolerance=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind):
    image = decoded(Image.fromarray(RAMP.astype(np.uint16) * 257), kind)
    assert image.mode in ("I;16", "I", "I;16B")
    assert_shows_the_ramp(image)
    cut_off = np.asarray(image.convert("RGB"))
    assert (cut_off == 255).mean() > 0.99  # what it is without scaling


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_in_either_order(mode):
    values = (RAMP.astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "<u2")
    assert_shows_the_ramp(Image.frombytes(mode, RAMP.shape, values.tobytes()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.float32) / 255, "floating-point numbers from 0 to 1, whose white is not known"),
        (RAMP.astype(np.float32), "floating-point numbers from 0 to 255"),
        (RAMP.astype(np.int32) * 10**6, r"32-bit whole numbers from 0 to 2.55e\+08"),
    ],
)
def test_values_whose_white_is_not_known_are_refused(values, message):
    with pytest.raises(PacaError, match=message):
        to_rgb(decoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_picture_in_its_transparency_alone_is_refused(mode):
    image = Image.new("RGB", RAMP.shape, "black").convert(mode)
    assert_is_black(to_rgb(image))
    image.putalpha(Image.fromarray(RAMP))
    with pytest.raises(PacaError, match="of one colour but for its transparency"):
        to_rgb(image)
    drawn = Image.fromarray(RAMP).convert(mode)
    drawn.putalpha(Image.fromarray(RAMP[::-1]))
    assert_shows_the_ramp(drawn)


def assert_is_black(image):
    assert image.getextrema() == ((0, 0),) * 3


def test_turned_as_its_exif_data_says():
    source = Image.fromarray(RAMP.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    source.save(file, "PNG", exif=exif)
    assert np.array_equal(np.asarray(to_rgb(Image.open(file)))[..., 0], np.rot90(RAMP, -1))
