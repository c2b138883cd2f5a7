"""How the loss of a language model is computed, and what that keeps in memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion


@dataclass(frozen=True)
class Loss:
    """A way to compute the loss.

    Args:
        name: What is typed.
        prepare: Changes the model before a method is put on.
        compute: From the model with its method and token ids, shape `(batch, tokens)`, to the loss, a scalar.
    """

    name: str
    prepare: Callable[[Any], None]
    compute: Callable[[Any, Tensor], Tensor]


def _fuse_head(model: Any) -> None:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # what TRL's SFTTrainer asks for


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        # transformers' own: all logits, and again in float32
        Loss("full", lambda model: None, lambda model, ids: model(input_ids=ids, labels=ids).loss),
        # TRL's, and thereby `paca finetune`'s: logits tile by tile
        Loss("chunked", _fuse_head, lambda model, ids: model(input_ids=ids, labels=ids, fused_lm_head=True).loss),
    )
}


def find_loss(name: str) -> Loss:
    """Find a loss by its name in `LOSSES`."""
    if name not in LOSSES:
        raise PacaError(f"There is no loss {name!r}{suggestion(name, LOSSES) or '.'} Known: {', '.join(LOSSES)}.")
    return LOSSES[name]


def gpu_kernels() -> AbstractContextManager[Any]:
    """Let TRL's chunked loss allocate what it does on a GPU, where Triton works within a tile of logits.

    Elsewhere torch operators take its place, which make copies of the tile in float32. To be used over fake tensors
    only, whose values nobody reads.
    """
    from trl.kernels import chunked_logprob

    return mock.patch.multiple(
        chunked_logprob, _forward_tile=_in_place, _backward_tile=_in_place, _addmm_fp32=_add_product
    )


def _in_place(*_: Any, **__: Any) -> None:
    """A kernel that allocates nothing."""


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """The product of 16-bit matrices added to a float32 one: one kernel on a GPU, with no copies of its operands."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        halves = total.view(a.dtype)[:, : b.shape[1]]
        halves.addmm_(a, b)
