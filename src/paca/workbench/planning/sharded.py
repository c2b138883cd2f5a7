"""Divides a fake model over ranks with FSDP2 itself; a process group that only pretends answers its collectives."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist


@contextlib.contextmanager
def mesh(ranks: int) -> Iterator[Any]:
    """Pretend to be the first of several ranks; yield a device mesh, None for one rank."""
    if ranks == 1:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield dist.init_device_mesh("cpu", (ranks,))
    finally:
        dist.destroy_process_group()


def shard(model: Any, over: Any) -> None:
    """Shard each block that transformers keeps whole, and the rest of the model around them.

    The method is on the model, whose tensors are fake.
    """
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = getattr(base, "_no_split_modules", None) or ()
    blocks = [module for module in base.modules() if type(module).__name__ in names]
    for block in blocks:
        fully_shard(block, mesh=over)
    fully_shard(model, mesh=over)
