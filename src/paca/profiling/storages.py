"""Which storages a value stands on: tensors, and those inside sparse tensors, wrapper subclasses and containers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

_COMPRESSED_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def storages_of(value: Any) -> Iterator[UntypedStorage]:
    """Yield the storages of all tensors in a value.

    Args:
        value: A tensor, or any nest of lists, tuples, dicts and whatever else torch's pytree knows. What is not a
            tensor is passed over.

    Yields:
        UntypedStorage: One storage per dense tensor; tensors that share a storage yield it as often as they occur.
    """
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            for dense in dense_parts(leaf):
                yield dense.untyped_storage()


def dense_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the dense tensors that a tensor is made of: itself, unless it only wraps others.

    Args:
        tensor: Any tensor. An opaque one (MKL-DNN's layout), which has no storage that could be asked, yields nothing.

    Yields:
        Tensor: A tensor that has a storage.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for part in (getattr(tensor, name) for name in names):
            if isinstance(part, Tensor):  # a DTensor names its mesh as well
                yield from dense_parts(part)
    elif tensor.layout == torch.strided:
        yield tensor
    elif tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in _COMPRESSED_ROWS:
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in _COMPRESSED_COLUMNS:
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
