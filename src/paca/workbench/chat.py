"""A conversation with a model, word by word, at a terminal or in a pipe."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import string_problem, suggestion
from paca.workbench.models.generation import Sampling, Write, context_length, encode_prompt, generate
from paca.workbench.training.adapted import NamedAdapter

COMMANDS = {
    "/adapter": "/adapter on|off|NAME: answer with or without the adapter, or by another one; the conversation stays",
    "/again": "/again: answer the last message again, for instance after /adapter off",
    "/reset": "/reset: forget the conversation",
    "/help": "/help: these lines",
    "/quit": "/quit: leave, as the end of the input does",
}


@dataclass
class Conversation:
    """A model with what was said so far.

    Args:
        model: A `PeftModel` or a plain one, in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        sampling: How answers are sampled.
        system: What the system message says; that of the template, if it has one, when omitted.
        stoppable: Whether Ctrl-C cuts an answer short, and not the whole conversation.
        adapter_on: Whether the adapter answers.
        adapters: Those that the model has, where it has several; the first is active.
        messages: The turns, the system message not among them.
        cut: Why the last answer ends where it does, where it was cut short.
    """

    model: Any
    tokenizer: Any
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    stoppable: bool = True
    adapter_on: bool = True
    adapters: Sequence[NamedAdapter] = ()
    messages: list[dict[str, str]] = field(default_factory=list)
    cut: str | None = None

    def __post_init__(self) -> None:
        """Refuse a model that no conversation can be written for, and a system message that is no text."""
        _check_text("the system message", self.system or "")
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
        _check_text("the message", text)
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

        chosen = contextlib.nullcontext() if self.adapter_on else self.model.disable_adapter()
        self.cut = "stopped"
        with contextlib.suppress(*([KeyboardInterrupt] if self.stoppable else [])), chosen:
            _, at_the_limit = generate(self.model, self.tokenizer, inputs, self.sampling, show)
            limit = self.sampling.max_new_tokens
            self.cut = f"cut at --max-new-tokens {limit}" if at_the_limit else None
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

    def use_adapter(self, name: str) -> None:
        """Answer by another adapter from now on, with its own tokenizer and chat template.

        Args:
            name: What it is called.

        Raises:
            PacaError: If there is none of that name.
        """
        adapter = next((adapter for adapter in self.adapters if adapter.name == name), None)
        if adapter is None:
            known = [adapter.name for adapter in self.adapters]
            named = f", or the name of one: {', '.join(known)}{suggestion(name, known)}" if known else ""
            raise PacaError(f"/adapter {name!r}: type /adapter on or /adapter off{named}.")
        self.model.set_adapter(adapter.key)
        self.tokenizer, self.adapter_on = adapter.tokenizer, True

    @property
    def answering(self) -> str:
        """Who answers: an adapter's name or `adapter on`, `adapter off`; nothing where there is none."""
        if not hasattr(self.model, "disable_adapter"):
            return ""
        if not self.adapter_on:
            return "adapter off"
        active = self.model.active_adapter
        return next((adapter.name for adapter in self.adapters if adapter.key == active), "adapter on")

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


def converse(
    conversation: Conversation, lines: Iterable[str], write: Write, terminal: bool = False, note: Write | None = None
) -> None:
    """Answer line after line, until there are no more or `/quit` is typed.

    On a terminal a mistake is shown and the conversation goes on; in a pipe the first line that can't be answered
    raises its PacaError.

    Args:
        conversation: With whom.
        lines: What is said, and commands.
        write: Takes the answers.
        terminal: Whether a person reads them.
        note: Takes what is no answer: who answers from now on, and that an answer was cut; `write` if omitted.
    """
    note = note or write
    for line in _read(lines):
        text = line.strip()
        if text == "/quit":
            return
        if not text:
            continue
        try:
            _obey(conversation, text, write, note)
        except PacaError as error:
            if not terminal:
                raise
            write(f"{error}\n")


def _read(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise PacaError(not_text(error)) from error


def not_text(error: UnicodeDecodeError) -> str:
    """Say that bytes of the input are no text in its encoding."""
    return f"The input is not {error.encoding.upper()} text: {error}."


def _check_text(name: str, text: str) -> None:
    problem = string_problem(name, text)
    if problem is not None:
        raise PacaError(f"{problem}.")


def _obey(conversation: Conversation, text: str, write: Write, note: Write) -> None:
    command, _, argument = text.partition(" ")
    if command == "/help":
        write("\n".join(COMMANDS.values()) + "\n")
    elif command == "/reset":
        conversation.messages.clear()
    elif command == "/again":
        conversation.say_again(write)
        _end_answer(conversation, write, note)
    elif command == "/adapter":
        if argument.strip() in ("on", "off"):
            conversation.switch_adapter(argument.strip() == "on")
        else:
            conversation.use_adapter(argument.strip())
        note(f"({conversation.answering})\n")
    elif command.startswith("/") and command[1:].isalpha():
        near = suggestion(command, COMMANDS)
        raise PacaError(f"There is no command {command}{near or '.'} {'; '.join(COMMANDS.values())}.")
    else:
        conversation.say(text, write)
        _end_answer(conversation, write, note)


def _end_answer(conversation: Conversation, write: Write, note: Write) -> None:
    write("\n")
    if conversation.cut is not None:
        note(f"({conversation.cut})\n")
