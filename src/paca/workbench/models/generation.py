"""Generates text with a causal language model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.options import option
from paca.workbench.data.conversations import apply_template
from paca.workbench.data.loss_facts import eos_token_ids

Write = Callable[[str], object]


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled; the fields are options of `paca chat`."""

    temperature: float = option("0: the likeliest token each time (%(default)s)", 0.7, metavar="T")
    top_p: float = option(
        "sample from the likeliest tokens that together have this probability (%(default)s)", 0.9, metavar="P"
    )
    max_new_tokens: int = option("the longest answer, in tokens (%(default)s)", 512, metavar="N")

    def __post_init__(self) -> None:
        """Refuse what can't be sampled with."""
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature = {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p = {self.top_p}: expected more than 0, at most 1")
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens = {self.max_new_tokens}: expected at least 1")
        if problems:
            raise PacaError("; ".join(problems))

    def arguments(self) -> dict[str, Any]:
        """Return it as arguments of `generate`; a model's own settings for sampling are put aside."""
        sampled = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {**(sampled if self.temperature > 0 else greedy), "max_new_tokens": self.max_new_tokens}


def context_length(model: Any) -> int:
    """How many tokens a model can read: its number of positions, or 2³¹ where it has no bound."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def encode_prompt(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    """Encode a conversation that asks for the next answer: `input_ids` and `attention_mask`, shape `(1, tokens)`.

    A PacaError if the template refuses the turns, as some refuse a system message.
    """
    return apply_template(tokenizer, messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def generate(
    model: Any, tokenizer: Any, inputs: Any, sampling: Sampling, write: Write = lambda _: None
) -> tuple[str, bool]:
    """Let a model continue a prompt; return the text without special tokens, and whether `max_new_tokens` cut it.

    The inputs have `input_ids` and `attention_mask`, shape `(1, tokens)`; `write` gets each piece of text at once.
    """
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    ends = eos_token_ids(tokenizer, model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items() if name != "token_type_ids"}
    output = model.generate(
        **inputs,
        **sampling.arguments(),
        streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    made = output[0, inputs["input_ids"].shape[1] :]
    cut = len(made) >= sampling.max_new_tokens and int(made[-1]) not in ends
    return tokenizer.decode(made, skip_special_tokens=True), cut
