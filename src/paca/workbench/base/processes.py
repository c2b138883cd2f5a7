"""A run of several processes, started by `accelerate launch` or `torchrun`: who writes, and who waits.

With one process every function here does the plain thing.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

Result = TypeVar("Result")


def world_size() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 is the one that writes."""
    import torch.distributed as dist

    return dist.get_rank() if world_size() > 1 else 0


def on_main(act: Callable[[], Result]) -> Result:
    """Run something on rank 0 alone, and return its result, or raise its error, on every rank.

    The result is sent to all ranks, so it has to be small and picklable.
    """
    if world_size() == 1:
        return act()
    import torch.distributed as dist

    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = act()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: Result = answer[0]
    return result


def shared_out(batches: Any) -> Iterator[tuple[Any, bool]]:
    """This rank's share of some batches, as many for each rank: engines gather weights for all ranks at once.

    Args:
        batches: The same on every rank.

    Yields:
        tuple[Any, bool]: A batch, and whether it counts. Where batches run out, a rank repeats one that does not.
    """
    number, own, remaining = world_size(), rank(), iter(batches)
    while group := list(islice(remaining, number)):
        yield (group[own], True) if own < len(group) else (group[0], False)


def summed(values: list[float], device: Any = "cpu") -> list[float]:
    """Sum numbers over all ranks, on a device where the process group can sum tensors."""
    if world_size() == 1:
        return values
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gathered(value: Any) -> list[Any]:
    """What each rank gives, by rank; it has to be small and picklable."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
