"""From a picture of any mode to RGB bytes, without losing what it shows.

Pillow's own conversion cuts 16-bit and floating-point values off at 255, so that such a picture becomes all white.
"""

from typing import Any

from paca.errors import PacaError

# Where Pillow says "I", 32-bit integers, of a file whose format has at most 16 bits and scales to all of them.
_SIXTEEN_BITS = ("PNG", "PPM")


def open_rgb(path: Any) -> Any:
    """Decode an image file whole to an RGB `PIL.Image`; as `to_rgb` does."""
    from PIL import Image

    with Image.open(path) as image:
        return to_rgb(image)


def to_rgb(image: Any) -> Any:
    """Convert a `PIL.Image` to RGB, turned as its EXIF data says; 16-bit values are scaled to bytes.

    A PacaError refuses values whose white is not known, and a picture that is in its transparency alone.
    """
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format in _SIXTEEN_BITS):
        turned = _scaled(turned)
    if turned.mode in ("I", "F"):
        kind = {"I": "32-bit whole numbers", "F": "floating-point numbers"}[turned.mode]
        low, high = turned.getextrema()
        raise PacaError(f"holds {kind} from {low:g} to {high:g}, whose white is not known; save it with 8 or 16 bits")
    rgb = turned.convert("RGB")
    if turned.has_transparency_data and _is_plain(rgb) and not _is_plain(turned.convert("RGBA").getchannel("A")):
        raise PacaError("is of one colour but for its transparency, which no model sees; put it on a background")
    return rgb


def _scaled(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    return Image.fromarray((values / 257).round().clip(0, 255).astype("uint8"))


def _is_plain(image: Any) -> bool:
    extrema = image.getextrema()
    channels = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in channels)
