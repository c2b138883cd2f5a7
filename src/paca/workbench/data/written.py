"""Finds what a chat template makes of each part of a conversation, and what it leaves out.

Every part is given words that stand nowhere else, and the conversation is written once more: a part whose words are
missing was left out. So nothing has to be known of how a template writes numbers, quotes or white space.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from paca.errors import PacaError
from paca.workbench.data.rendering import Chat, Rendered, rendered
from paca.workbench.data.turns import REASONING, TRAIN, Turn

THOUGHTS, PREFACE, ANSWER, CALLS, ARGUMENTS = "thoughts", "preface", "answer", "calls", "arguments"  # of the assistant
CONTENT, TOOLS = "content", "tools"
LEFT_OUT, IN_PART, UNLEARNED = "leaves out", "leaves out a part of", "writes where nothing carries loss"
Part = tuple[int, str]  # the turn, and which part of it; -1 for what stands beside the turns
Mark = Callable[[int, str], str]
_THINK = re.compile(r"(</?think>)")


@dataclasses.dataclass(frozen=True)
class Traced:
    """A conversation written with words of its own in every part.

    Args:
        words: Those of each part.
        written: What the template made of it; None where it refuses the words.
    """

    words: Mapping[Part, list[str]]
    written: Rendered | None


def trace(tokenizer: Any, chat: Chat, template: str | None) -> Traced:
    """Write a conversation with words of its own in every part; `template` is what `training_template` chose."""
    words: defaultdict[Part, list[str]] = defaultdict(list)

    def mark(turn: int, part: str) -> str:
        word = f"zq{sum(map(len, words.values()))}qz"
        words[turn, part].append(word)
        return word

    messages = [_marked(turn, index, mark) for index, turn in enumerate(chat.messages)]
    tools = [_marked_tool(tool, mark) for tool in chat.tools] if chat.tools else None
    try:
        written = rendered(tokenizer, dataclasses.replace(chat, messages=messages, tools=tools), template)
    except PacaError:  # the template looks at what is said, and the true words it took
        return Traced(words, None)
    return Traced(words, written)


def turns_of_spans(written: Rendered, traced: Traced) -> list[int] | None:
    """Tell whose turn each span of a conversation is, by whose words are in it; None where that can't be told.

    A span without words, such as a mark of the end, belongs to the turn before it.
    """
    if written.turns is not None:
        return written.turns
    if traced.written is None or len(traced.written.spans) != len(written.spans):
        return None
    turns: list[int] = []
    for start, end in traced.written.spans:
        stretch = traced.written.text[start:end]
        owners = {turn for (turn, _), words in traced.words.items() if any(word in stretch for word in words)}
        if len(owners) > 1 or not (owners or turns):
            return None
        turns.append(owners.pop() if owners else turns[-1])
    return turns


def missing_parts(chat: Chat, traced: Traced) -> dict[Part, str]:
    """Find what the template does to parts of a conversation that do not arrive whole: one of the three above."""
    if traced.written is None:
        return {}
    text, answers = traced.written.text, set(chat.answers)
    learned = "\n".join(text[start:end] for start, end in traced.written.spans)
    fates = {
        part: _fate(part, words, text, learned if part[0] in answers else text) for part, words in traced.words.items()
    }
    return {part: fate for part, fate in fates.items() if fate is not None}


def _fate(part: Part, words: list[str], text: str, learned: str) -> str | None:
    found = [word in learned for word in words]
    if all(found) or (part[1] == TOOLS and any(found)):
        return None
    if any(found):
        return IN_PART
    return UNLEARNED if any(word in text for word in words) else LEFT_OUT


def _marked(turn: Turn, index: int, mark: Mark) -> Turn:
    """Put words into all that a turn says."""
    marked = dict(turn)
    if turn["role"] != "assistant":
        if turn["content"].strip():
            marked["content"] = turn["content"].rstrip() + mark(index, CONTENT)
        return marked
    marked["content"] = _marked_answer(turn["content"], index, mark)
    for key in REASONING:
        if isinstance(turn.get(key), str) and turn[key].strip():
            marked[key] = turn[key].rstrip() + mark(index, THOUGHTS)
    if turn.get("tool_calls"):
        marked["tool_calls"] = [_marked_call(call, index, mark) for call in turn["tool_calls"]]
    return marked


def _marked_answer(content: str, index: int, mark: Mark) -> str:
    pieces = _THINK.split(content)
    for position, piece in enumerate(pieces):
        if not piece.strip() or _THINK.fullmatch(piece):
            continue
        # What stands before a closing tag is thought, also where the opening one is part of the prompt.
        following = pieces[position + 1] if position + 1 < len(pieces) else ANSWER
        part = {"</think>": THOUGHTS, "<think>": PREFACE}.get(following, ANSWER)
        start, end = len(piece) - len(piece.lstrip()), len(piece.rstrip())
        pieces[position] = piece[:start] + mark(index, part) + piece[start:end] + mark(index, part) + piece[end:]
    return "".join(pieces)


def _marked_call(call: Mapping[str, Any], index: int, mark: Mark) -> dict[str, Any]:
    function = dict(call["function"])
    function["name"] += mark(index, CALLS)
    arguments = function["arguments"]
    if isinstance(arguments, str):
        function["arguments"] = arguments + mark(index, ARGUMENTS)
    elif arguments:
        function["arguments"] = {**arguments, mark(index, ARGUMENTS): mark(index, ARGUMENTS)}
    return {**call, "function": function}


def _marked_tool(tool: Mapping[str, Any], mark: Mark) -> dict[str, Any]:
    """Put words into a tool's name and its description; a template that knows tools writes one of them."""
    function = tool.get("function")
    if isinstance(function, dict):
        return {**tool, "function": _marked_tool(function, mark)}
    named = {key: tool[key] + mark(-1, TOOLS) for key in ("name", "description") if isinstance(tool.get(key), str)}
    return {**tool, **named}


def remarks_on(chat: Chat, missing: Mapping[Part, str]) -> list[str]:
    """Say what does not arrive; a PacaError where it is an answer itself, all that its turn was to teach."""
    for answer in chat.answers:
        turn = chat.messages[answer]
        fates = {part: missing.get((answer, part)) for part in _to_learn(turn)} if turn.get(TRAIN, True) else {}
        if fates and all(fate in (LEFT_OUT, UNLEARNED) for fate in fates.values()):
            raise PacaError(
                f"the answer in turn {answer + 1} would be lost, as the chat template {next(iter(fates.values()))} "
                f"{' and '.join(_WHAT[part] for part in fates)}. Leave the row out, or name a template that writes it "
                "with model.chat_template."
            )
    remarks = (f"the chat template {fate} {_named(chat, part)}" for part, fate in sorted(missing.items()))
    return list(dict.fromkeys(remarks))


def _to_learn(turn: Turn) -> list[str]:
    """The parts that make up an answer: its last words and its calls, or thoughts where there is nothing else."""
    says = _THINK.split(turn["content"])[-1].strip()
    given = [part for part, there in ((ANSWER, says), (CALLS, turn.get("tool_calls"))) if there]
    thinks = turn["content"].strip() or any(turn.get(key) for key in REASONING)
    return given or ([THOUGHTS] if thinks else [])


def unread_fields(chat: Chat, template: str) -> list[str]:
    """Name the fields of turns that a template, by its source, has no word of, in the order in which they come."""
    given = dict.fromkeys(key for turn in chat.messages for key in turn)
    return [key for key in given if key not in _TOLD and key not in template]


# Told of where they are missing, or ids and names that repeat what is written elsewhere.
_TOLD = {"role", "content", "tool_calls", "tool_call_id", "id", "name", TRAIN, *REASONING}
_WHAT = {
    THOUGHTS: "the thoughts of an answer",
    PREFACE: "what an answer says before its thoughts",
    ANSWER: "what an answer says",
    CALLS: "the 'tool_calls' of an answer",
    ARGUMENTS: "the arguments of tool calls",
    TOOLS: "the 'tools'",
}


def _named(chat: Chat, part: Part) -> str:
    index, kind = part
    if kind == CONTENT:
        return f"a turn of {chat.messages[index]['role']!r}"
    if kind == THOUGHTS and index != chat.answers[-1]:
        return "the thoughts of an earlier answer"
    if kind == ANSWER and chat.messages[index].get("tool_calls"):
        return "what an answer says beside its tool calls"
    return _WHAT[kind]
