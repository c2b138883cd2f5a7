"""Time to change a model's adapter: from `set_adapter` to the first token, and per token after it.

    python benchmarks/switch.py                      SmolLM2-135M, rank 16, with 1, 8 and 64 adapters
    python benchmarks/switch.py --config llama3.2-1b --dtype bfloat16 --methods paca lora      random weights
    python benchmarks/switch.py --config tiny --adapters 1 2 --rounds 2      the benchmark itself, in seconds

Each round takes another adapter and continues a prompt greedily with a key-value cache. Four ways take turns in one
process, every other round in reverse:

- base: no adapter. It is timed twice under two names, and their ratio is the noise of the run.
- paca: `set_adapter`; its columns are written into the weights when the answer begins, and taken out when it ends.
- paca, runs: the same, of connections in runs of 16, each row of which lies in one cache line.
- lora: `set_adapter`; its products are added in every layer, for every token.
- lora, merged: `unmerge_adapter`, `set_adapter`, `merge_adapter`: every weight is changed twice, and a token costs
  what the base's does.

`switch` is what comes between two adapters' answers. PaCA's holds `set_adapter`, the write of all columns and the way
back, although the answer that follows writes for itself. All times are lower quartiles over the rounds. At the end the
base weights are compared with what they were, bit for bit.

Each method has a copy of the base model for itself: `--methods` names those that fit into memory beside each other.
`--json` keeps what its file holds of other numbers of adapters in the same setting, so that they can be measured one
at a time.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmark import (
    add_numbers,
    add_threads_and_json,
    benchmark,
    describe,
    make_parser,
    print_table,
    read_results,
    surroundings,
)
from generate import BASE, BASE_AGAIN, answer, timed
from methods import METHODS
from models import CONFIG_HELP, DTYPES, SMOLLM2, load_base
from paca.profiling.steps import lower_quartile
from timing import time_in_turns

PACA, RUNS, LORA, MERGED = "paca", "paca, runs", "lora", "lora, merged"
MODELS = {PACA: "paca", RUNS: "paca-runs-16", LORA: "lora"}  # what is put onto a copy of the base model, by way
_SETTING = ("config", "methods", "rank", "prompt_tokens", "new_tokens", "rounds", "dtype")
_UPDATE = 0.01  # standard deviation of what starts at zero
_WEIGHT = "base_layer.weight"


class Times(NamedTuple):
    """Seconds of one answer by another adapter than the last one's.

    Args:
        switch: What comes between the last answer and this one.
        first: From the last answer until the first token is there.
        token: Of each token after it.
    """

    switch: float
    first: float
    token: float


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--config", default=SMOLLM2, help=CONFIG_HELP)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 64], help="how many each model has")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=MODELS.values(),
        default=[*MODELS.values()],
        help="what is measured (default: all)",
    )
    add_numbers(parser, prompt_tokens=(32, "that are continued"), new_tokens=(16, "of an answer, above 1"))
    add_numbers(parser, rank=(16, "of every adapter"), rounds=(11, "timed answers of each way"))
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the base model (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return add_threads_and_json(parser)


def adapt(base: PreTrainedModel, method: str, rank: int) -> Any:
    """Put a method onto a copy of a model, for generation, with one adapter called "0"."""
    torch.manual_seed(0)
    model: Any = METHODS[method].prepare(copy.deepcopy(base), rank).eval()
    config = model.peft_config["default"]
    model.add_adapter("0", config)
    model.set_adapter("0")
    model.delete_adapter("default")
    fill(model, "0")
    return model


def add_adapters(model: Any, count: int) -> None:
    """Have a model bear adapters "0", "1", … up to a count, each other than all before."""
    for number in range(len(model.peft_config), count):
        config = copy.deepcopy(model.peft_config["0"])
        if hasattr(config, "random_seed"):
            config.random_seed = number  # other columns
        torch.manual_seed(number)
        model.add_adapter(str(number), config)
        fill(model, str(number))


@torch.no_grad()
def fill(model: nn.Module, adapter: str) -> None:
    """Give an adapter's updates values as if they had been trained."""
    for name, parameter in model.named_parameters():
        if _is_of(adapter, name) and not parameter.any():
            parameter.normal_(0, _UPDATE)


class Way(NamedTuple):
    """One way to change a model's adapter.

    Args:
        model: Bears all adapters.
        begin: Has it be as after an answer by some adapter.
        change: Has it be ready for an answer by another one.
        switch: The same, with everything that is done for the sake of the change, before or within the answer.
        end: Leaves the model as the next way needs it.
    """

    model: Any
    begin: Callable[[str], None]
    change: Callable[[str], None]
    switch: Callable[[str], None]
    end: Callable[[], None]


def ways(models: Mapping[str, Any]) -> dict[str, Way]:
    """All ways, by name, of models that bear their adapters."""

    def write_and_put_back(model: Any, adapter: str) -> None:
        model.set_adapter(adapter)
        with model._enable_peft_forward_hooks():  # what an answer begins and ends with
            pass

    def merge(lora: Any, adapter: str) -> None:
        lora.set_adapter(adapter)
        lora.merge_adapter()

    def merge_another(lora: Any, adapter: str) -> None:
        lora.unmerge_adapter()
        merge(lora, adapter)

    in_place = {
        name: Way(model, model.set_adapter, model.set_adapter, partial(write_and_put_back, model), lambda: None)
        for name, model in models.items()
        if name != LORA
    }
    if LORA not in models:
        return in_place
    lora = models[LORA]
    another = partial(merge_another, lora)
    return {
        **in_place,
        LORA: Way(lora, lora.set_adapter, lora.set_adapter, lora.set_adapter, lambda: None),
        MERGED: Way(lora, partial(merge, lora), another, another, lora.unmerge_adapter),
    }


def time_base(base: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Times:
    """Time an answer without an adapter."""
    first = timed(partial(answer, base, prompt, 1), base.device)
    whole = timed(partial(answer, base, prompt, new_tokens), base.device)
    return Times(0.0, first, (whole - first) / (new_tokens - 1))


class Switching:
    """Times one way; each call takes the next adapters.

    Args:
        way: The way.
        adapters: How many there are; one alone is left and taken again.
        prompt: Token ids, shape `(1, tokens)`.
        new_tokens: How many to add.
    """

    def __init__(self, way: Way, adapters: int, prompt: Tensor, new_tokens: int) -> None:
        self.way, self.adapters, self.prompt, self.new_tokens = way, adapters, prompt, new_tokens
        self.calls = 0

    def __call__(self) -> Times:
        """Change the adapter, answer, and leave the weights as they were."""
        way, device = self.way, self.prompt.device

        def changed_and_answered() -> None:
            way.change(self._next())
            answer(way.model, self.prompt, 1)

        way.begin(self._next())
        switch = timed(partial(way.switch, self._next()), device)
        first = timed(changed_and_answered, device)
        again = timed(partial(answer, way.model, self.prompt, 1), device)
        whole = timed(partial(answer, way.model, self.prompt, self.new_tokens), device)
        way.end()
        return Times(switch, first, (whole - again) / (self.new_tokens - 1))

    def _next(self) -> str:
        self.calls += 1
        return str(self.calls % self.adapters)


def held_bytes(model: Any, adapter: str) -> int:
    """Bytes that an adapter takes: its parameters and its indices."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(tensor.numel() * tensor.element_size() for name, tensor in tensors if _is_of(adapter, name))


def _is_of(adapter: str, name: str) -> bool:
    """Whether a parameter or buffer is an adapter's; layers are numbered like these, but not at the end of a name."""
    return name.removesuffix(".weight").endswith(f".{adapter}")


def pretrained(model: nn.Module, base: PreTrainedModel) -> bool:
    """Whether all weights of the base model are what they were, bit for bit; -0 is another than 0."""
    found = {
        name.removeprefix("base_model.model.").replace(_WEIGHT, "weight"): parameter
        for name, parameter in model.named_parameters()
    }
    return all(torch.equal(_bits(found[name]), _bits(weight)) for name, weight in base.named_parameters())


def _bits(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().view(torch.uint8)


def measure(
    base: PreTrainedModel, models: Mapping[str, Any], adapters: int, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Time all ways in turns, with so many adapters on each model; by name, milliseconds and the ratio to the base."""
    for model in models.values():
        add_adapters(model, adapters)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(base.config.vocab_size, (1, arguments.prompt_tokens), generator=generator).to(base.device)
    without = partial(time_base, base, prompt, arguments.new_tokens)
    switching = {name: Switching(way, adapters, prompt, arguments.new_tokens) for name, way in ways(models).items()}
    runs: dict[str, Callable[[], Times]] = {BASE: without, BASE_AGAIN: without, **switching}
    times = time_in_turns(runs, arguments.rounds, f"{adapters} adapters", warm_up=1)
    seconds = {name: Times(*map(lower_quartile, map(list, zip(*taken, strict=True)))) for name, taken in times.items()}
    return {
        name: {
            "switch_ms": 1000 * found.switch,
            "first_token_ms": 1000 * found.first,
            "ms_per_token": 1000 * found.token,
            "token_to_base": found.token / seconds[BASE].token,
        }
        for name, found in seconds.items()
    }


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print the table."""
    setting = {name: getattr(arguments, name) for name in _SETTING}
    results = _measured_before(arguments.json, setting)
    base = load_base(arguments.config, DTYPES[arguments.dtype], arguments.device).eval()
    base.generation_config.eos_token_id = None  # an answer that ends early would be a shorter piece of work
    models = {
        name: adapt(base, method, arguments.rank) for name, method in MODELS.items() if method in arguments.methods
    }
    sizes = f"{arguments.prompt_tokens} tokens of prompt, {arguments.new_tokens} new ones"
    print(f"\n{arguments.config}, {arguments.dtype}, rank {arguments.rank}, {sizes}\n")
    for adapters in arguments.adapters:
        results[str(adapters)] = found = measure(base, models, adapters, arguments)
        print(f"{adapters} adapters; noise {found[BASE_AGAIN]['token_to_base']:.3f}")
        print_table(("way", "switch, ms", "to the first token, ms", "ms per token", f"× {BASE}"), _rows(found))
        for name in (PACA, RUNS):
            if name in found and MERGED in found:
                ratio = found[MERGED]["switch_ms"] / found[name]["switch_ms"]
                print(f"{name} switches {ratio:.1f} × as fast as LoRA is unmerged and merged")
        print()
    held = {name: held_bytes(model, "0") for name, model in models.items()}
    print(", ".join(f"{name}: {size / 2**20:.2f} MiB an adapter" for name, size in held.items()))
    intact = {name: pretrained(model, base) for name, model in models.items()}
    print("; ".join(f"{name}: base weights {'bit-identical' if same else 'changed'}" for name, same in intact.items()))
    result = {**surroundings(arguments.device), **setting}
    print(f"\n{describe(result)}")
    return {**result, "adapters": results, "bytes_per_adapter": held, "base_weights_bit_identical": intact}


def _measured_before(file: Path | None, setting: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds by number of adapters, if it was measured in the same setting."""
    before = read_results(file)
    same = all(before.get(name) == value for name, value in setting.items())
    found: dict[str, Any] = before["adapters"] if same else {}
    return found


def _rows(found: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for name, way in found.items():
        yield (
            name,
            f"{way['switch_ms']:.2f}",
            f"{way['first_token_ms']:.1f}",
            f"{way['ms_per_token']:.2f}",
            f"{way['token_to_base']:.3f}",
        )


if __name__ == "__main__":
    sys.exit(main())
