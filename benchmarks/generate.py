"""Time of greedy generation with an active adapter, as a ratio to the base model.

    python benchmarks/generate.py                    SmolLM2-135M, 64 new tokens: PaCA of rank 16, LoRA of rank 8
    python benchmarks/generate.py --config tiny --rounds 2 --new-tokens 8      the benchmark itself, in seconds

Both adapters are on all seven projections of every block, not merged, with updates that are not zero. The same prompt
is continued with a key-value cache, always by as many tokens, whatever they say. The models take turns in one process,
every other round in reverse; a time is the lower quartile over the rounds. The base model is timed twice under two
names: their ratio is the noise of the run.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmark import add_numbers, add_threads_and_json, benchmark, describe, make_parser, print_table, surroundings
from methods import METHODS
from models import CONFIG_HELP, DTYPES, SMOLLM2, load_base
from paca.profiling.steps import lower_quartile
from timing import time_in_turns

BASE, BASE_AGAIN = "base", "base again"
_UPDATE = 0.01  # standard deviation of what starts at zero


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--config", default=SMOLLM2, help=CONFIG_HELP)
    add_numbers(parser, prompt_tokens=(32, "that are continued"), new_tokens=(64, "of an answer"))
    add_numbers(
        parser, paca_rank=(16, "of PaCA"), lora_rank=(8, "of LoRA"), rounds=(11, "timed answers of each model")
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base model (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return add_threads_and_json(parser)


def adapt(base: PreTrainedModel, method: str, rank: int) -> nn.Module:
    """Put a method onto a copy of the model, with updates as if it had been trained.

    Args:
        base: The model; stays as it is.
        method: A name in `METHODS`.
        rank: Of the method.

    Returns:
        The adapted model, for generation.
    """
    torch.manual_seed(0)
    model = METHODS[method].prepare(copy.deepcopy(base), rank).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(0, _UPDATE)
    return model


def prepare(base: PreTrainedModel, paca_rank: int, lora_rank: int) -> dict[str, nn.Module]:
    """The models to time, by the names that the table shows, the base model first and twice."""
    base.eval()
    base.generation_config.eos_token_id = None  # an answer that ends early would be a shorter piece of work
    adapted = {
        f"paca, rank {paca_rank}": adapt(base, "paca", paca_rank),
        f"lora, rank {lora_rank}": adapt(base, "lora", lora_rank),
    }
    return {BASE: base, BASE_AGAIN: base, **adapted}


def answer(model: nn.Module, prompt: Tensor, new_tokens: int) -> Tensor:
    """Continue a prompt greedily.

    Args:
        model: A causal language model without an EOS token.
        prompt: Token ids, shape `(1, tokens)`.
        new_tokens: How many to add.

    Returns:
        The prompt and its continuation, shape `(1, tokens + new_tokens)`.

    Raises:
        RuntimeError: If the model stopped before.
    """
    tokens: Tensor = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new_tokens,
        use_cache=True,
        pad_token_id=0,
    )
    if tokens.shape[1] != prompt.shape[1] + new_tokens:
        raise RuntimeError(f"{tokens.shape[1] - prompt.shape[1]} tokens were generated in place of {new_tokens}.")
    return tokens


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def measure(base: PreTrainedModel, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time all models in turns.

    Args:
        base: The model; is put into evaluation mode.
        arguments: The command line.

    Returns:
        By name: `seconds` of an answer, `ms_per_token`, `to_base`.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(base.config.vocab_size, (1, arguments.prompt_tokens), generator=generator).to(base.device)
    runs = {
        name: partial(timed, partial(answer, model, prompt, arguments.new_tokens), base.device)
        for name, model in prepare(base, arguments.paca_rank, arguments.lora_rank).items()
    }
    times = time_in_turns(runs, arguments.rounds, f"{arguments.new_tokens} new tokens", warm_up=1)
    seconds = {name: lower_quartile(taken) for name, taken in times.items()}
    return {
        name: {
            "seconds": taken,
            "ms_per_token": 1000 * taken / arguments.new_tokens,
            "to_base": taken / seconds[BASE],
        }
        for name, taken in seconds.items()
    }


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print the table."""
    base = load_base(arguments.config, DTYPES[arguments.dtype], arguments.device)
    measured = measure(base, arguments)
    noise = measured[BASE_AGAIN]["to_base"]
    sizes = f"{arguments.prompt_tokens} tokens of prompt, {arguments.new_tokens} new ones"
    print(f"\n{arguments.config}, {arguments.dtype}, {sizes}; noise {noise:.3f}\n")
    rows = (
        (name, f"{found['seconds']:.3f}", f"{found['ms_per_token']:.2f}", f"{found['to_base']:.3f}")
        for name, found in measured.items()
    )
    print_table(("model", "seconds", "ms per token", f"× {BASE}"), rows)
    setting = {name: getattr(arguments, name) for name in ("prompt_tokens", "new_tokens", "rounds", "dtype")}
    result = {**surroundings(arguments.device), "model": arguments.config, **setting, "noise": noise}
    print(f"\n{describe(result)}")
    return {**result, "methods": measured}


if __name__ == "__main__":
    sys.exit(main())
