"""Counts what a forward pass keeps in memory for its backward pass."""

import gc
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from .tracker import track


def kept_for_backward(forward: Callable[[], Any]) -> int:
    """Count the bytes that a forward pass keeps alive until its backward pass.

    The forward pass is run, its outputs are let go and only their autograd graph is held; what is freed when the graph
    goes as well is what was kept for it. Storages that exist before the call (parameters, the batch, and what is
    saved of them without a copy) are not counted, nor are caches that the first call fills.

    Args:
        forward: Runs the forward pass and returns its outputs: a tensor, or any nest of containers and of
            transformers' model outputs.

    Returns:
        Bytes; 0 when no output requires a gradient.

    Raises:
        TypeError: There is no tensor in what `forward` returned, so its graph cannot be found.
    """
    with track() as tracker:
        graph = _graph_roots(forward())
        gc.collect()
        with_graph = tracker.live_bytes
        del graph
        gc.collect()
        return with_graph - tracker.live_bytes


def _graph_roots(outputs: Any) -> list[Any]:
    """List edges of the graph to the outputs, without holding the outputs themselves.

    The node of an autograd function is its output's alone: only an edge keeps it.
    """
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(
            f"kept_for_backward: the forward pass returned {type(outputs).__name__}, in which there is no tensor, so "
            "nothing tells which graph to measure; return the loss, for example `lambda: model(**batch).loss`."
        )
    return [get_gradient_edge(tensor) for tensor in tensors if tensor.grad_fn is not None]
