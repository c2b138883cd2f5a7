"""GPUs by name: memory as sold, and dense peak rates of matrix products from their makers' data sheets.

Rates are those of tensor cores without sparsity, accumulating in 32 bits where a sheet tells that apart. Sheets that
quote rates with sparsity are halved, as they say themselves.
"""

import re
from dataclasses import dataclass

import torch

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Args:
        name: What is typed.
        gigabytes: Its memory as sold, taken as GiB.
        half: Peak rate in 16 bits, in 10¹² operations per second; None if only a size was given.
        single: Peak rate on float32 matrices, in TF32 where there is that.
        source: Which sheet the rates are from.
    """

    name: str
    gigabytes: float
    half: float | None = None
    single: float | None = None
    source: str = ""

    @property
    def bytes(self) -> int:
        """Its memory in bytes."""
        return int(self.gigabytes * 2**30)

    def seconds_at_least(self, operations: int, dtype: torch.dtype) -> float | None:
        """Seconds that the operations of a step take at the peak rate: a lower bound; None if the rate is unknown."""
        rate = self.single if dtype is torch.float32 else self.half
        return None if rate is None else operations / (rate * 1e12)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 40, 312, 156, "NVIDIA A100 Tensor Core GPU data sheet"),
        Gpu("a100-80gb", 80, 312, 156, "NVIDIA A100 Tensor Core GPU data sheet"),
        Gpu("h100", 80, 989.4, 494.7, "NVIDIA H100 Tensor Core GPU architecture (white paper), SXM5"),
        Gpu("h200", 141, 989.4, 494.7, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        Gpu("l4", 24, 121, 60, "NVIDIA L4 Tensor Core GPU data sheet"),
        Gpu("rtx3090", 24, 71, 35.6, "NVIDIA Ampere GA102 GPU architecture (white paper)"),
        Gpu("rtx4090", 24, 165.2, 82.6, "NVIDIA Ada GPU architecture (white paper)"),
        Gpu("t4", 16, 65, 8.1, "NVIDIA T4 Tensor Core GPU data sheet; no bfloat16, no TF32"),
        Gpu("v100-32gb", 32, 125, 15.7, "NVIDIA V100 Tensor Core GPU data sheet, SXM2; no bfloat16, no TF32"),
    )
}


def find_gpu(name: str) -> Gpu:
    """Find a GPU by a name in `GPUS` or a size such as `80GB`; a PacaError if it is neither."""
    typed = name.lower()
    if typed in GPUS:
        return GPUS[typed]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b?)?", typed)
    if size and float(size.group(1)) > 0:
        return Gpu(name, float(size.group(1)))
    raise PacaError(
        f"There is no GPU {name!r}{suggestion(typed, GPUS) or '.'} Give a size such as 80GB, or one of: "
        f"{', '.join(GPUS)}."
    )
