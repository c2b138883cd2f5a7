"""A conversation with a model, word by word, at a terminal or in a pipe."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from paca.errors import PacaError

Write = Callable[[str], None]

COMMANDS = {
    "/adapter": "/adapter on|off: answer with or without the adapter; the conversation stays",
    "/again": "/again: answer the last message again, for instance after /adapter off",
    "/reset": "/reset: forget the conversation",
    "/help": "/help: these lines",
    "/quit": "/quit: leave, as the end of the input does",
}


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: Draw from the likeliest tokens that together have this probability.
        max_new_tokens: The longest answer.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse what can't be drawn by."""
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
        """Return it as arguments of `generate`; a model's own settings for drawing are put aside."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {**(drawn if self.temperature > 0 else greedy), "max_new_tokens": self.max_new_tokens}


@dataclass
class Conversation:
    """A model with what was said so far.

    Args:
        model: A `PeftModel` or a plain one, in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        sampling: How answers are drawn.
        system: What the system message says; that of the template, if it has one, when omitted.
        adapter_on: Whether the adapter answers.
        messages: The turns, the system message not among them.
    """

    model: Any
    tokenizer: Any
    sampling: Sampling = Sampling()
    system: str | None = None
    adapter_on: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a model that no conversation can be written for."""
        if self.tokenizer.chat_template is None:
            raise PacaError(
                f"The tokenizer of {self.tokenizer.name_or_path!r} has no chat template, so a conversation can't be "
                "written as its text; take a model that was tuned to follow instructions."
            )

    def say(self, text: str, write: Write) -> str:
        """Add a message and answer it.

        Args:
            text: The message.
            write: Called with each piece of the answer as soon as it is there.

        Returns:
            The answer, also where Ctrl-C cut it short.

        Raises:
            PacaError: If the message alone is longer than the model can read.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            inputs = self._prompt()
        except PacaError:
            self.messages.pop()
            raise
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            write(piece)

        with contextlib.suppress(KeyboardInterrupt), self._as_asked():
            generate(self.model, self.tokenizer, inputs, self.sampling, show)
        answer = "".join(pieces).strip()
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def say_again(self, write: Write) -> str:
        """Answer the last message once more, in place of the answer that it had.

        Args:
            write: As for `say`.

        Returns:
            The answer.

        Raises:
            PacaError: If nothing was said yet.
        """
        if not self.messages:
            raise PacaError("There is no message to answer again.")
        *self.messages, question, _ = self.messages
        return self.say(question["content"], write)

    def switch_adapter(self, on: bool) -> None:
        """Answer with or without the adapter from now on.

        Args:
            on: With it.

        Raises:
            PacaError: If there is none.
        """
        if not hasattr(self.model, "disable_adapter"):
            raise PacaError("There is no adapter: a plain model was loaded.")
        self.adapter_on = on

    def _as_asked(self) -> Any:
        return contextlib.nullcontext() if self.adapter_on else self.model.disable_adapter()

    def _prompt(self) -> Any:
        """The conversation as token ids; the oldest turns are forgotten where it has grown too long."""
        room = context_length(self.model) - self.sampling.max_new_tokens
        while True:
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            inputs = encode_prompt(self.tokenizer, system + self.messages)
            tokens = inputs["input_ids"].shape[1]
            if tokens <= room:
                return inputs
            if len(self.messages) == 1:
                raise PacaError(
                    f"The message has {tokens:,} tokens with its frame; the model reads "
                    f"{context_length(self.model):,}, of which {self.sampling.max_new_tokens:,} are kept for the "
                    "answer. Shorten it, or lower --max-new-tokens."
                )
            del self.messages[:2]


def context_length(model: Any) -> int:
    """How many tokens a model can read.

    Args:
        model: Any causal language model.

    Returns:
        Its number of positions, or 2³¹ where it has no bound.
    """
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def encode_prompt(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    """Write a conversation that asks for the next answer.

    Args:
        tokenizer: With a chat template.
        messages: The turns so far.

    Returns:
        `input_ids` and `attention_mask`, shape `(1, tokens)`.

    Raises:
        PacaError: If the template refuses the turns, as some refuse a system message.
    """
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except jinja2.TemplateError as error:
        raise PacaError(f"The chat template of {tokenizer.name_or_path!r} refuses these messages: {error}") from error


def end_marks(model: Any, tokenizer: Any) -> list[int]:
    """The tokens at which an answer ends: those of the model's generation settings, and the tokenizer's end mark.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer.

    Returns:
        Token ids, sorted.
    """
    given = model.generation_config.eos_token_id
    marks = {*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id}
    return sorted(mark for mark in marks if mark is not None)


def generate(model: Any, tokenizer: Any, inputs: Any, sampling: Sampling, write: Write = lambda _: None) -> str:
    """Let a model go on from a prompt.

    Args:
        model: A `PeftModel` or a plain one.
        tokenizer: Its tokenizer.
        inputs: `input_ids` and `attention_mask`, shape `(1, tokens)`.
        sampling: How tokens are drawn.
        write: Called with each piece of text as soon as it is there.

    Returns:
        The text, without special tokens.
    """
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    marks = end_marks(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(marks), None)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items() if name != "token_type_ids"}
    output = model.generate(
        **inputs,
        **sampling.arguments(),
        streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        eos_token_id=marks or None,
        pad_token_id=pad,
    )
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def converse(conversation: Conversation, lines: Iterable[str], write: Write, terminal: bool = False) -> None:
    """Answer line after line, until there are no more or `/quit` is typed.

    Args:
        conversation: The model, and what was said so far.
        lines: What is typed.
        write: Shows text.
        terminal: Whether a person sits there: a mistake is then shown and the conversation goes on.

    Raises:
        PacaError: In a pipe, on the first line that can't be answered.
    """
    for line in _read(lines):
        text = line.strip()
        if text == "/quit":
            return
        if not text:
            continue
        try:
            _obey(conversation, text, write)
        except PacaError as error:
            if not terminal:
                raise
            write(f"{error}\n")


def _read(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise PacaError(f"The input is not UTF-8 text: {error}.") from error


def _obey(conversation: Conversation, text: str, write: Write) -> None:
    command, _, argument = text.partition(" ")
    if command == "/help":
        write("\n".join(COMMANDS.values()) + "\n")
    elif command == "/reset":
        conversation.messages.clear()
    elif command == "/again":
        conversation.say_again(write)
        write("\n")
    elif command == "/adapter":
        if argument.strip() not in ("on", "off"):
            raise PacaError(f"/adapter {argument.strip()!r}: type /adapter on or /adapter off.")
        conversation.switch_adapter(argument.strip() == "on")
    elif command.startswith("/") and command[1:].isalpha():
        raise PacaError(f"There is no command {command}. {'; '.join(COMMANDS.values())}.")
    else:
        conversation.say(text, write)
        write("\n")
