"""Each engine on two processes against one process with the same global batch: how far the updates are apart.

    python benchmarks/engines.py                     # a small Llama of random weights
    python benchmarks/engines.py --model smollm2

Ten Adam steps in float32 on gloo and CPUs; printed is the largest difference of any element of any update, and the
largest element, for scale. One process takes each batch as a whole, and, apart from that, its halves in turn, as
gradient accumulation does: sums over the batch are then rounded as two ranks round them, so what is left is the
engine's own. Mixed precision is compared with FSDP2 on one process, in halves only: bfloat16 rounds a whole batch in
another way. DeepSpeed is run where it is installed.
"""

import argparse
import copy
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from benchmark import add_numbers, benchmark, make_parser, print_table

BATCH = 4  # sequences in the global batch
WHOLE, HALVES, HALVES_IN_BFLOAT16 = "whole", "halves", "halves in bfloat16"
ENGINES = ("DDP", "FSDP2", "FSDP2, CPU offload", "FSDP2, bfloat16", "ZeRO-1", "ZeRO-2", "ZeRO-3")


@functools.cache
def base_model(name: str) -> Any:
    """The base model, the same in every process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from paca.workbench.models.embedded import SMOLLM2
    from paca.workbench.models.load import load_model

    torch.manual_seed(0)
    if name == "smollm2":
        return load_model(SMOLLM2, "float32")
    sizes = {"hidden_size": 64, "intermediate_size": 129, "num_hidden_layers": 2, "vocab_size": 256}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=False))


def build(options: argparse.Namespace) -> Any:
    """A copy of it, adapted."""
    from peft import get_peft_model

    from paca import PacaConfig

    model = copy.deepcopy(base_model(options.model))
    config = PacaConfig(r=options.rank, target_modules="all-linear", random_seed=0, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def sharded(model: Any, engine: str) -> Any:
    """A model divided by FSDP2, block by block."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    policies: dict[str, Any] = {}
    if "offload" in engine:
        policies["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    if "bfloat16" in engine:
        policies["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.get_base_model().model.layers:
        fully_shard(block, **policies)
    return fully_shard(model, **policies)


def share(step: int, rank: int, ranks: int, tokens: int) -> Tensor:
    """This rank's share of a step's batch."""
    whole = torch.randint(0, 256, (BATCH, tokens), generator=torch.Generator().manual_seed(step))
    return whole.chunk(ranks)[rank]


def train(engine: str, rank: int, ranks: int, options: argparse.Namespace, chunks: int = 1) -> dict[str, Tensor]:
    """Ten steps, each share computed in so many chunks; returns the whole updates by name."""
    model = build(options)
    if engine.startswith("ZeRO"):
        return train_zero(model, int(engine[-1]), rank, ranks, options)
    if engine == "DDP" and ranks > 1:
        model = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    elif engine.startswith("FSDP2"):
        model = sharded(model, engine)
    optimizer = torch.optim.Adam(trained(model), lr=options.learning_rate)
    for step in range(options.steps):
        for tokens in share(step, rank, ranks, options.tokens).chunk(chunks):
            (model(input_ids=tokens, labels=tokens).loss / chunks).backward()
        optimizer.step()
        optimizer.zero_grad()
    return updates(model)


def train_zero(model: Any, stage: int, rank: int, ranks: int, options: argparse.Namespace) -> dict[str, Tensor]:
    """Ten steps of DeepSpeed's engine."""
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": BATCH // ranks,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
    }
    optimizer = torch.optim.Adam(trained(model), lr=options.learning_rate)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for step in range(options.steps):
        tokens = share(step, rank, ranks, options.tokens)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    with deepspeed.zero.GatheredParameters(trained(model), enabled=stage == 3):
        return updates(model)


def updates(model: nn.Module) -> dict[str, Tensor]:
    """What was trained, by name, as whole tensors."""
    found: dict[str, Any] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}
    return {name.removeprefix("module."): value.detach().clone() for name, value in whole.items()}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any element."""
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def compare(rank: int, options: argparse.Namespace, alone: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, ...]]:
    """Train with each engine on two processes; a row of the table each, how far it is from what one arrives at."""
    if importlib.util.find_spec("deepspeed") is not None:
        import deepspeed.comm.torch

        deepspeed.comm.torch.build_shm_op = lambda: None  # else it compiles C++ first, for minutes
        deepspeed.init_distributed(dist_backend="gloo")
    for engine in options.engines:
        if engine.startswith("ZeRO") and importlib.util.find_spec("deepspeed") is None:
            continue
        found = train(engine, rank, 2, options)
        in_bfloat16 = "bfloat16" in engine
        whole = "–" if in_bfloat16 else f"{apart(found, alone[WHOLE]):.1e}"
        halves = apart(found, alone[HALVES_IN_BFLOAT16 if in_bfloat16 else HALVES])
        largest = max(float(value.abs().max()) for value in found.values())
        yield engine, whole, f"{halves:.1e}", f"{largest:.1e}"


def run_rank(rank: int, ranks: int, folder: str, options: argparse.Namespace) -> None:
    """On one process, save what the engines should arrive at; on two, print how far off they are."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}  # DeepSpeed reads them
    dist.init_process_group("gloo", f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    if ranks == 1:
        alone = {
            WHOLE: train("DDP", 0, 1, options),
            HALVES: train("DDP", 0, 1, options, chunks=2),
            HALVES_IN_BFLOAT16: train("FSDP2, bfloat16", 0, 1, options, chunks=2),
        }
        torch.save(alone, f"{folder}/alone.pt")
        return
    rows = compare(rank, options, torch.load(f"{folder}/alone.pt"))
    if rank == 0:
        columns = (
            "engine, two processes",
            "from one process, whole batch",
            "from one, halves in turn",
            "largest element",
        )
        print_table(columns, rows)
    else:
        list(rows)  # trains along


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES, metavar="NAME", help=str(ENGINES))
    add_numbers(
        parser, rank=(8, "of PaCA"), steps=(10, "of Adam"), tokens=(16, "per sequence, of which a step takes four")
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Run all engines, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            multiprocessing.spawn(run_rank, (ranks, folder, arguments), nprocs=ranks)


if __name__ == "__main__":
    sys.exit(main())
