"""Runs a function on several gloo ranks, each a process of its own, and hands back what every rank returned.

A server process imports the heavy libraries once; ranks are forked from it, so each starts in well under a second.
Ranks meet through a file, not a port: tests that run at the same time can't take each other's.
"""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

PRELOADED = ["tests.distributed.imports"]
SECONDS = 180  # until a rank that hangs fails its test


def on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """Call `function(rank, *arguments)` on every rank.

    Args:
        function: A module's function, so that another process can import it.
        *arguments: What can be pickled.
        ranks: How many.

    Returns:
        What each rank returned, by rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        started = [
            context.Process(target=_rank, args=(rank, ranks, folder, send, function, arguments), daemon=True)
            for rank, (_, send) in enumerate(pipes)
        ]
        for process, (_, send) in zip(started, pipes, strict=True):
            process.start()
            send.close()  # else the end of a rank that is killed would not be noticed
        try:
            results = [_received(receive, process) for (receive, _), process in zip(pipes, started, strict=True)]
        finally:
            for process in started:
                process.join(5)
                process.kill()
    failed = [f"rank {rank}: {value}" for rank, (succeeded, value) in enumerate(results) if not succeeded]
    if failed:
        raise AssertionError("\n".join(failed))
    return [value for _, value in results]


def _received(receive: Any, process: Any) -> tuple[bool, Any]:
    if receive.poll(SECONDS):
        try:
            return pickle.loads(receive.recv_bytes())
        except EOFError:
            process.join(5)
    return False, f"no answer; exit code {process.exitcode}"


def _rank(rank: int, ranks: int, folder: str, send: Any, function: Any, arguments: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
    )
    try:
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group("gloo", store, timedelta(seconds=SECONDS), ranks, rank)
        torch.manual_seed(0)
        answer = (True, function(rank, *arguments))
        dist.destroy_process_group()
    except BaseException:
        answer = (False, traceback.format_exc())
    send.send_bytes(
        pickle.dumps(answer)
    )  # copies tensors, where multiprocessing would share the memory of a process that ends
    send.close()
