"""One turn of a conversation: what it may hold, and the form in which a chat template is given it.

That form is the one that transformers documents: `role`, `content` as a string, and perhaps `reasoning_content` or
`tool_calls` with their arguments as mappings. A turn that carries no loss has `train: False`.
"""

import json
from collections.abc import Mapping
from typing import Any

from paca.workbench.base.messages import shown, string_problem

Turn = dict[str, Any]
TRAIN = "train"
MARKS = ("weight", TRAIN, "masked")  # a turn's own word on whether it carries loss; `masked` says the opposite
REASONING = ("reasoning_content", "reasoning", "thinking")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_TEXT_PARTS = ("text", "input_text", "output_text")
_APART = {*MARKS, *MEDIA, "tool_calls"}


def turn_problem(turn: Any) -> str | None:
    """Say why a value is no turn `{'role': …, 'content': …}`; None for a good one."""
    calls = turn.get("tool_calls") if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        return f"must hold strings 'role' and 'content', got {shown(turn)}"
    content = turn.get("content")
    if isinstance(content, list):
        problem = _parts_problem(content)
    elif content is None and (calls or any(turn.get(key) for key in REASONING)):
        problem = None
    elif not isinstance(content, str):
        return f"must hold strings 'role' and 'content', got {shown(turn)}"
    else:
        problem = string_problem("content", content)
    return problem or tool_calls_problem(calls) or _mark_problem(turn)


def _parts_problem(parts: list[Any]) -> str | None:
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return f"'content' is a list whose entries must be like {{'type': 'text', 'text': …}}, got {shown(part)}"
        problem = string_problem("text", part.get("text")) if part["type"] in _TEXT_PARTS else None
        if problem is not None:
            return f"'content': {problem}"
    return None


def tool_calls_problem(calls: Any) -> str | None:
    """Say why a value is no list of calls, each with a name and arguments that are an object or JSON of one."""
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return f"'tool_calls' must be a list of {{'function': {{'name': …, 'arguments': …}}}}, got {shown(calls)}"
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return f"a tool call must name its function, {{'name': …, 'arguments': …}}, got {shown(call)}"
        arguments = decoded(function.get("arguments"))
        if arguments not in (None, "") and not isinstance(arguments, dict):
            return f"the arguments of a tool call must be an object or the JSON of one, got {shown(arguments)}"
    return None


def _mark_problem(turn: Mapping[str, Any]) -> str | None:
    for mark in MARKS:
        value = turn.get(mark)
        if value is not None and value not in (0, 1):
            return f"{mark!r} must be true, false, 0 or 1, got {shown(value)}; a turn carries its whole loss or none"
    return None


def carries_loss(turn: Mapping[str, Any]) -> bool:
    """Whether a turn of the assistant is learned: no mark says that it isn't."""
    return turn.get("weight") not in (0,) and turn.get(TRAIN) not in (0,) and turn.get("masked") not in (1,)


def normalised(turn: Mapping[str, Any]) -> Turn:
    """Write a good turn in the form that chat templates document; without empty fields, as theirs tell them apart."""
    kept = {key: value for key, value in turn.items() if value is not None and key not in _APART}
    kept["content"] = _joined_text(turn.get("content"))
    if turn.get("tool_calls"):
        kept["tool_calls"] = list(map(_call, turn["tool_calls"]))
    if not carries_loss(turn):
        kept[TRAIN] = False
    return kept


def _joined_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] in _TEXT_PARTS)
    return content or ""


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    outer = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
    arguments = decoded(function.get("arguments")) or {}
    return {"type": "function", **outer, "function": {**function, "arguments": arguments}}


def decoded(value: Any) -> Any:
    """Read JSON where a value is a string of it, as many files hold tools and arguments; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def media_of(turn: Mapping[str, Any]) -> set[str]:
    """Name what a turn holds beside text: parts of its content, and fields such as `images`."""
    content = turn.get("content")
    parts = [part["type"] for part in content if part["type"] not in _TEXT_PARTS] if isinstance(content, list) else []
    return {*parts, *(key for key in MEDIA if turn.get(key))}
