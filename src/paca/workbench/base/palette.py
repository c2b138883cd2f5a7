"""The colours of every picture: one for each method, whichever report it is in, and others for the parts of a bar."""

import colorsys
import zlib
from collections.abc import Iterable

GREY = "#8a94a6"

# Told apart by people who see few colours, on white and on near-black.
_METHODS = {
    "frozen": GREY,
    "paca": "#3a75f0",
    "lora": "#ee7a33",
    "miss": "#17a673",
    "lora-fa": "#b754c4",
    "dora": "#d9a514",
    "full": "#e34a6f",
    "moslora": "#18a7b8",
    "lora-base-dtype": "#9a7560",
    "qpaca": "#6a5acd",
    "qlora": "#88a318",
}
_OTHERS = ("#c2571a", "#2f8f9d", "#a83279", "#5c8a3a", "#7f6fd0", "#b08d2a")

# Parts of a bar, paler than any method: what memory is for, and the phases of a step.
KINDS = {
    "parameters": ("weights", "#7c8aa0"),
    "gradients": ("gradients", "#c9b38c"),
    "optimizer": ("optimizer", "#a79ac2"),
    "activations": ("kept", "#86b3ac"),
    "temporaries": ("temporaries", "#cfd5de"),
}
PHASES = {
    "forward_ms": ("forward", "#9fb6d3"),
    "backward_ms": ("backward", "#6d86a6"),
    "optimizer_ms": ("optimizer", "#a79ac2"),
}


def method_colours(labels: Iterable[str]) -> dict[str, str]:
    """Give each method its colour, by label.

    A label is a method's name, such as `paca`, or that with arguments, such as `paca(r=8)`: of several with one name,
    those behind the first have lighter shades.
    """
    taken: dict[str, int] = {}
    found = {}
    for label in labels:
        name = label.partition("(")[0]
        tint = _METHODS.get(name) or _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]
        found[label] = _lighter(tint, taken.get(name, 0))
        taken[name] = taken.get(name, 0) + 1
    return found


def _lighter(tint: str, shades: int) -> str:
    red, green, blue = (int(tint[place : place + 2], 16) / 255 for place in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    parts = colorsys.hls_to_rgb(hue, 1 - (1 - lightness) * 0.72**shades, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
