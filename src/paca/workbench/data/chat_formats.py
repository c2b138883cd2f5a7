"""The formats that hold conversations, and what their rows hold beside the turns: `system`, `history` and `tools`.

What a row becomes has `messages`, perhaps `tools` and `chat_template_kwargs`; see `turns.py` for the messages.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from paca.workbench.base.messages import shown, string_problem
from paca.workbench.data.turns import decoded, media_of, normalised, tool_calls_problem, turn_problem

Row = dict[str, Any]
CONTEXT = ("system", "history", "tools", "chat_template_kwargs")
_CALLS = ("function_call",)
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
    "function_call": "assistant",
}  # fmt: skip


def conversation_problem(row: Row) -> str | None:
    """Say why a row of the format `messages` can't be learned from; None for a good one."""
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return f"'messages' must be a list of {{'role': …, 'content': …}}, got {shown(messages)}"
    for position, turn in enumerate(messages, start=1):
        problem = turn_problem(turn)
        if problem is not None:
            return f"message {position}: {problem}"
    return context_problem(row, messages) or _order_problem([turn["role"] for turn in messages], row)


def _order_problem(roles: list[str], row: Row) -> str | None:
    if "assistant" not in roles:
        return f"no message has the role 'assistant', so there is nothing to learn; roles: {', '.join(roles)}"
    if roles[0] == "assistant" and not row.get("history"):
        return "the first message has the role 'assistant', so it answers nothing; start with 'user' or 'system'"
    return None


def context_problem(row: Row, messages: list[Any]) -> str | None:
    """Say why what a row holds beside its turns can't be used: `system`, `history`, `tools`; None where it can."""
    system, history, tools = row.get("system"), row.get("history"), decoded(row.get("tools"))
    if system and string_problem("system", system):
        return string_problem("system", system)
    if system and messages and messages[0].get("role") == "system" and messages[0].get("content") != system:
        return "has a 'system' beside its turns and another as the first of them; keep one"
    if history and not _are_pairs(history):
        return f"'history' must be a list of [question, answer], got {shown(history)}"
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return f"'tools' must be a list of descriptions of functions, or the JSON of one, got {shown(tools)}"
    options = decoded(row.get("chat_template_kwargs"))
    if options and not isinstance(options, dict):
        return f"'chat_template_kwargs' must be an object, got {shown(options)}"
    return None


def _are_pairs(history: Any) -> bool:
    return isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and not any(string_problem("turn", text) for text in pair)
        for pair in history
    )


def conversation(row: Row) -> Row:
    """Make the row that is encoded: what stands beside the turns in the format `messages` comes into its place."""
    turns = list(map(normalised, row["messages"]))
    past = [
        {"role": role, "content": text}
        for pair in row.get("history") or ()
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    system = [turns.pop(0)] if turns[0]["role"] == "system" else []
    if row.get("system") and not system:
        system = [{"role": "system", "content": row["system"]}]
    beside = {key: decoded(row.get(key)) for key in ("tools", "chat_template_kwargs")}
    return {"messages": [*system, *past, *turns], **{key: value for key, value in beside.items() if value}}


def alpaca_problem(row: Row) -> str | None:
    """Say why a row with `instruction`, `output` and perhaps `input` can't be learned from; None for a good one."""
    for key in ("instruction", "input", "output"):
        if key != "input" or row.get(key) is not None:
            problem = string_problem(key, row[key])
            if problem is not None:
                return problem
    return context_problem(row, [])


def from_alpaca(row: Row) -> Row:
    """Make a question, with its input behind a blank line, and its answer of an instruction."""
    question = "\n\n".join(filter(None, ((row.get(key) or "").strip() for key in ("instruction", "input"))))
    answer = row["output"].strip()
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return conversation({**row, "messages": turns})


def sharegpt_problem(row: Row) -> str | None:
    """Say why a row with `conversations` of `from` and `value` can't be learned from; None for a good one."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return f"'conversations' must be a list of {{'from': …, 'value': …}}, got {shown(turns)}"
    for position, turn in enumerate(turns, start=1):
        speaker = turn.get("from", turn.get("role"))
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            return f"turn {position} is from {speaker!r:.60}, expected one of {', '.join(_SPEAKERS)}"
        problem = _calls_problem(turn) if speaker in _CALLS else None
        if problem is not None:
            return f"turn {position}: {problem}"
    return conversation_problem({**row, "messages": list(map(_turn, turns))})


def from_sharegpt(row: Row) -> Row:
    """Write turns of `from` and `value` as those of `role` and `content`; a `function_call` as one of `tool_calls`."""
    return conversation({**row, "messages": list(map(_turn, row["conversations"]))})


def _turn(turn: Mapping[str, Any]) -> Row:
    speaker = turn.get("from", turn.get("role"))
    value = turn.get("value", turn.get("content"))
    kept = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if speaker in _CALLS:
        return {**kept, "role": "assistant", "content": "", "tool_calls": _calls(value)}
    return {**kept, "role": _SPEAKERS[speaker], "content": value}


def _calls(value: Any) -> Any:
    calls = decoded(value)
    return [calls] if isinstance(calls, dict) else calls


def _calls_problem(turn: Mapping[str, Any]) -> str | None:
    value = turn.get("value", turn.get("content"))
    if not _calls(value):
        return (
            f"a 'function_call' must hold the JSON of {json.dumps({'name': '…', 'arguments': {}})}, got {shown(value)}"
        )
    return tool_calls_problem(_calls(value))


def unused_in_messages(row: Row) -> Iterator[str]:
    """Say what the turns of a good row hold that can't be honoured: pictures, and loss on what is not an answer."""
    for turn in row["messages"]:
        for name in sorted(media_of(turn)):
            yield unused_media(name)
        if turn["role"] != "assistant" and (turn.get("train") or turn.get("weight") or turn.get("masked") in (0,)):
            yield f"a turn of {turn['role']!r} is marked to carry loss, which only the assistant's do"


def unused_in_sharegpt(row: Row) -> Iterator[str]:
    """Say the same of turns with `from` and `value`."""
    return unused_in_messages({"messages": list(map(_turn, row["conversations"]))})


def unused_media(name: str) -> str:
    """Say that text alone is trained on."""
    return f"{name!r} is not used: only text is trained on"
