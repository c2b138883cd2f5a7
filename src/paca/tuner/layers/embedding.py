"""PaCA on `nn.Embedding`: a connection is a token, and `Δ` is `(r, d)`.

A subclass may scale the rows that it looks up, as transformers' scaled word embeddings do. One that does anything else
in its forward is refused: updates of its plain rows would not be what it puts out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...method.columns.update import ColumnUpdate
from ...method.functional.embedding import embedding_update, partial_embedding
from .base import PacaLayer
from .quantized import comes_quantized

# The names in `super().forward(input_ids) * self.embed_scale.to(self.weight.dtype)`, and in the shorter form of it.
SCALES_ONLY = frozenset(("super", "forward", "embed_scale", "to", "weight", "dtype"))


class Embedding(PacaLayer):
    """`nn.Embedding` with adapted rows."""

    connection_dim = 0
    converts_to_lora = False
    delta_dim = 0
    base_forward = nn.Embedding.forward

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why an embedding cannot be adapted as it is: beside `PacaLayer.problem`, what its forward does besides."""
        if comes_quantized(base):
            return "its table is quantized, and rows are trained in plain tables only."
        if problem := cls._forward_problem(base, "look rows up", "rows"):
            return problem
        if base.max_norm is not None:
            return (
                f"max_norm={base.max_norm} has each forward shorten rows of the table itself, pretrained and trained "
                "ones alike. Switch it off (`module.max_norm = None`), or leave the layer out with exclude_modules."
            )
        return super().problem(base)

    @classmethod
    def knows(cls, base_class: Any) -> bool:
        return super().knows(base_class) or scales_rows(base_class)

    def _features(self) -> tuple[int, int]:
        return self.base_layer.num_embeddings, self.base_layer.embedding_dim

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        return r, self.out_features

    def _multiply(self, x: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        base = self.base_layer
        if not isinstance(loan, Tensor):
            updates = tuple(update for update in updates if not update.retired)
        return self._scaled(partial_embedding(x, loan, base.padding_idx, base.scale_grad_by_freq, updates))

    def _additive(self, x: Tensor, update: ColumnUpdate) -> Tensor:
        base = self.base_layer
        y = embedding_update(x, update.delta, update.indices, base.padding_idx, base.scale_grad_by_freq)
        return self._scaled(y * update.scaling)

    def _scaled(self, y: Tensor) -> Tensor:
        if not scales_rows(type(self.base_layer)):
            return y
        scale: Any = self.base_layer.embed_scale
        return y * (scale.to(self.base_layer.weight.dtype) if isinstance(scale, Tensor) else scale)


def scales_rows(embedding_class: type) -> bool:
    """Whether an embedding is one of transformers' that multiply the rows they look up by their `embed_scale`.

    Args:
        embedding_class: Its class.

    Returns:
        Whether it is.
    """
    named = embedding_class.__name__.endswith("ScaledWordEmbedding")
    if not named or not embedding_class.__module__.startswith("transformers.models."):
        return False
    code: Any = getattr(embedding_class.forward, "__code__", None)  # type: ignore[attr-defined]
    return code is not None and SCALES_ONLY.issuperset(code.co_names)
