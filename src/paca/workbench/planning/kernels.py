"""Layers that a GPU has kernels for which no fake tensor can follow: what their torch code says about a plan."""

import sys

from torch import nn

from paca.errors import PacaError

# Functions of transformers' model files, by what they run as where their kernel is missing.
TOKEN_BY_TOKEN = {"mamba_selective_scan": "mamba_ssm", "rwkv_linear_attention_cpu": "rwkv's CUDA"}
IN_CHUNKS = {
    "mamba2_chunk_scan": "mamba_ssm",
    "torch_chunk_gated_delta_rule": "fla",
    "chunk_kimi_delta_attention": "fla",
}


def refuse_token_by_token(model: nn.Module, model_type: str) -> None:
    """Refuse a model whose torch code makes an operation of each token: its memory says nothing about the kernel's."""
    kernel = _first(model, TOKEN_BY_TOKEN)
    if kernel:
        raise PacaError(
            f"A model of type {model_type!r} can't be planned: without the {kernel} kernels, which need a GPU, its "
            "state-space layers run token by token, and what that keeps says nothing about the kernels."
        )


def kernel_note(model: nn.Module) -> str:
    """Say that layers were planned by their torch code, where a GPU has a kernel; empty where there are none."""
    kernel = _first(model, IN_CHUNKS)
    return f"its state-space layers are planned as their torch code; the {kernel} kernels keep less" if kernel else ""


def _first(model: nn.Module, functions: dict[str, str]) -> str | None:
    """What the kernel is of, if a module of the model was defined beside one of these functions."""
    files = {type(module).__module__ for module in model.modules()}
    found = (functions[name] for file in sorted(files) for name in functions if hasattr(sys.modules[file], name))
    return next(found, None)
