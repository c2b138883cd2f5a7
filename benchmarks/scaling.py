"""What one rank holds and sends per step, and how long a step takes, on one process and on two (gloo, CPU).

    python benchmarks/scaling.py
    python benchmarks/scaling.py --hidden 512 --layers 4 --steps 10

Bytes are exact: of parameters, gradients and optimizer states that live on rank 0, and of what it hands to collectives
in one step. Times are this machine's: two processes that share its cores say nothing of two machines.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from benchmark import add_numbers, benchmark, make_parser, print_table
from paca.profiling.peak import state_tensors
from paca.profiling.traffic import count_traffic

TOKENS = 64


def build(method: str, hidden: int, layers: int, rank: int) -> nn.Module:
    """A Llama of random weights with the method on all linear layers, or to be trained whole."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from paca import PacaConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "vocab_size": 512}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, tie_word_embeddings=False))
    common: dict[str, Any] = {"r": rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    if method == "paca":
        return get_peft_model(model, PacaConfig(**common, random_seed=0))
    return get_peft_model(model, LoraConfig(**common)) if method == "lora" else model


def wrap(model: Any, engine: str) -> nn.Module:
    """Hand a model to an engine."""
    if engine == "ddp":
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    from torch.distributed.fsdp import fully_shard

    for block in [module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer"]:
        fully_shard(block)
    return fully_shard(model)


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of this rank's parameters, gradients and optimizer states."""
    gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    tensors = (*model.parameters(), *gradients, *state_tensors(optimizer))
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def measure(rank: int, ranks: int, store: str, engine: str, options: argparse.Namespace, answers: Any) -> None:
    """Train on one rank; rank 0 answers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=ranks)
    for method in ("paca", "lora", "full"):
        model = wrap(build(method, options.hidden, options.layers, options.rank), engine)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        seconds = []
        for step in range(options.steps):
            tokens = torch.randint(0, 512, (4 // ranks, TOKENS), generator=torch.Generator().manual_seed(step))
            started = time.perf_counter()
            with count_traffic() as traffic:
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
            seconds.append(time.perf_counter() - started)
            held = held_bytes(model, optimizer)
            optimizer.zero_grad()
        if rank == 0:
            answers.put((method, held, dict(traffic.bytes), statistics.median(seconds[1:])))
    dist.destroy_process_group()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    add_numbers(parser, hidden=(256, "the model's width"), layers=(4, "the model's depth"))
    add_numbers(parser, rank=(16, "of both adapters"), steps=(6, "of each method"))
    return parser


def measure_all(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Run all combinations; a row of the table for each method."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    for engine, ranks in (("ddp", 1), ("ddp", 2), ("fsdp2", 2)):
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(measure, (ranks, f"{folder}/store", engine, options, answers), nprocs=ranks)
        for _ in range(3):
            method, held, traffic, seconds = answers.get()
            sent = ", ".join(f"{kind} {size / 2**20:.2f}" for kind, size in sorted(traffic.items())) or "nothing"
            yield engine, f"{ranks}", method, f"{held / 2**20:.1f}", sent, f"{1e3 * seconds:.0f}"


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Measure, and print a table."""
    columns = ("engine", "processes", "method", "held (MiB)", "sent per step (MiB)", "step (ms)")
    print_table(columns, measure_all(arguments), text=["method", "sent per step (MiB)"])


if __name__ == "__main__":
    sys.exit(main())
