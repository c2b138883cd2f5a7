"""Writes conversations with a chat template: the text, and which of it the assistant said.

A template that marks the assistant's turns (`{% generation %}`) says so itself. With any other, a turn is what a
prompt that asks for it (`add_generation_prompt`) is continued by.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import one_line, shown
from paca.workbench.data.turns import TRAIN, Turn

Span = tuple[int, int]
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chat:
    """What a chat template is given.

    Args:
        messages: The turns, as `turns.py` describes them.
        tools: Descriptions of the functions that may be called.
        options: Further variables of the template, such as `enable_thinking`.
    """

    messages: Sequence[Turn]
    tools: list[dict[str, Any]] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def answers(self) -> list[int]:
        """Where the assistant's turns are."""
        return [index for index, turn in enumerate(self.messages) if turn["role"] == "assistant"]

    def upto(self, count: int) -> "Chat":
        """The first turns alone; all but the last with -1."""
        return dataclasses.replace(self, messages=self.messages[:count])


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Args:
        text: All of it.
        spans: Where in the text the assistant speaks, one stretch after another.
        turns: Whose turn each of these is; None where that is not known.
    """

    text: str
    spans: list[Span]
    turns: list[int] | None


def training_template(tokenizer: Any) -> str | None:
    """Choose a chat template with `{% generation %}` markers: the tokenizer's own, or TRL's training version of it.

    None where turns have to be found by their text; a PacaError if the tokenizer has no chat template at all.
    """
    from trl.chat_template_utils import get_training_chat_template

    if tokenizer.chat_template is None:
        raise PacaError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so chat messages can't be written as "
            "its text; take an instruction-tuned model, or turn the data into JSONL with a 'text' key."
        )
    own = tokenizer.chat_template
    if isinstance(own, str) and _MARKER.search(own):
        return own
    try:
        return get_training_chat_template(tokenizer)
    except Exception:  # TRL does not know the template; or tries a conversation on it that it refuses
        return None


def with_fitting_arguments(tokenizer: Any, chat: Chat, template: str | None) -> Chat:
    """Give tool calls their arguments as the template takes them: mappings, as documented, or else JSON strings.

    Some templates, such as DeepSeek's, join strings; a mapping is an error there, or is written in Python's spelling.
    """
    calls = [call["function"] for turn in chat.messages for call in turn.get("tool_calls", ())]
    if not calls:
        return chat
    try:
        text, _ = _render(tokenizer, chat, template)
        if not any(str(call["arguments"]) in text for call in calls if "'" in str(call["arguments"])):
            return chat
        refused = None
    except PacaError as error:
        refused = error
    strings = dataclasses.replace(chat, messages=list(map(_with_string_arguments, chat.messages)))
    try:
        _render(tokenizer, strings, template)
    except PacaError as error:
        raise refused or error from error
    return strings


def _with_string_arguments(turn: Turn) -> Turn:
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in turn.get("tool_calls", ())
    ]
    return {**turn, "tool_calls": calls} if calls else turn


def rendered(tokenizer: Any, chat: Chat, template: str | None) -> Rendered:
    """Write a conversation; `template` is what `training_template` chose.

    A PacaError if the template fails, or does not tell the assistant's turns from the rest.
    """
    if template is None:
        return _by_prompts(tokenizer, chat)
    return Rendered(*_render(tokenizer, chat, template, marked=True), turns=None)


def _by_prompts(tokenizer: Any, chat: Chat) -> Rendered:
    text, _ = _render(tokenizer, chat)
    spans = []
    for index in chat.answers:
        upto, span = last_turn(tokenizer, chat.upto(index + 1))
        if not text.startswith(upto):
            raise _not_found(tokenizer, f"does not keep turn {index + 1} as it was when later turns are added")
        spans.append(span)
    return Rendered(text, spans, chat.answers)


def last_turn(tokenizer: Any, chat: Chat) -> tuple[str, Span]:
    """Write a conversation; its text, and where its last turn is, from after the prompt that asks for it.

    It ends with its EOS token, without white space. A PacaError if the turn does not go on from that prompt.
    """
    prompt, _ = _render(tokenizer, chat.upto(-1), prompts=True)
    text, _ = _render(tokenizer, chat)
    if not text.startswith(prompt):
        asked = shown(prompt[-20:])
        raise _not_found(
            tokenizer, f"asks for an answer with {asked}, which turn {len(chat.messages)} does not go on from"
        )
    return text, (len(prompt), max(len(text.rstrip()), len(prompt)))


def _not_found(tokenizer: Any, why: str) -> PacaError:
    return PacaError(
        f"The chat template of {tokenizer.name_or_path!r} {why}, so the assistant's words can't be told from the "
        "rest. Name a file with model.chat_template in which {% generation %} and {% endgeneration %} stand around "
        "the assistant's turns."
    )


def _render(
    tokenizer: Any, chat: Chat, template: str | None = None, marked: bool = False, prompts: bool = False
) -> tuple[str, list[Span]]:
    """Write a conversation; the text, and with `marked` where the template's `generation` blocks are in it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with template_errors_told(tokenizer, chat.messages):
        texts, spans = render_jinja_template(
            [[{key: value for key, value in turn.items() if key != TRAIN} for turn in chat.messages]],
            tools=chat.tools,
            chat_template=template or tokenizer.get_chat_template(None, chat.tools),
            return_assistant_tokens_mask=marked,
            add_generation_prompt=prompts,
            **{**tokenizer.special_tokens_map, **chat.options},
        )
    return texts[0], spans[0] if marked else []


@contextlib.contextmanager
def template_errors_told(tokenizer: Any, messages: Sequence[Turn]) -> Iterator[None]:
    """Make a PacaError of one line of whatever a template raises on turns that it refuses or wasn't written for."""
    try:
        yield
    except Exception as error:  # a template runs as code does: it adds a string to a number, or looks into nothing
        roles = ", ".join(turn["role"] for turn in messages)
        raise PacaError(
            f"The chat template of {tokenizer.name_or_path!r} can't write turns of the roles {roles}: "
            f"{one_line(error)}"
        ) from error
