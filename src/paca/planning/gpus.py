"""GPUs by name, and their memory as sold."""

import re
from dataclasses import dataclass

from paca.errors import PacaError
from paca.training.schema import suggestion


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Args:
        name: What is typed.
        gigabytes: Its memory as sold, taken as GiB.
    """

    name: str
    gigabytes: float

    @property
    def bytes(self) -> int:
        """Its memory in bytes."""
        return int(self.gigabytes * 2**30)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 40),
        Gpu("a100-80gb", 80),
        Gpu("h100", 80),
        Gpu("h200", 141),
        Gpu("l4", 24),
        Gpu("rtx3090", 24),
        Gpu("rtx4090", 24),
        Gpu("t4", 16),
        Gpu("v100-32gb", 32),
    )
}


def find_gpu(name: str) -> Gpu:
    """Find a GPU.

    Args:
        name: A name in `GPUS`, or a size such as `80GB`.

    Returns:
        The GPU.

    Raises:
        PacaError: If it is neither.
    """
    typed = name.lower()
    if typed in GPUS:
        return GPUS[typed]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b?)?", typed)
    if size and float(size.group(1)) > 0:
        return Gpu(name, float(size.group(1)))
    raise PacaError(
        f"There is no GPU {name!r}{suggestion(typed, GPUS)}. Give a size such as 80GB, or one of: {', '.join(GPUS)}."
    )
