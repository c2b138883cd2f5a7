"""Open Assistant's conversation trees: the best-ranked path as a conversation, or ranked replies as preferences."""

from collections.abc import Mapping, Sequence
from typing import Any

from paca.workbench.base.messages import shown, string_problem

ROLES = {"prompter": "user", "assistant": "assistant"}
Message = Mapping[str, Any]


def tree_problem(row: Mapping[str, Any]) -> str | None:
    """Say why a row is no conversation tree: `prompt`, a message with nested `replies`; None for a good one."""
    waiting = [row["prompt"]]
    while waiting:
        message = waiting.pop()
        problem = message_problem(message)
        if problem is not None:
            return problem
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            return f"'replies' must be a list of messages, got {shown(replies)}"
        waiting += replies
    return None


def message_problem(message: Any) -> str | None:
    """Say why a value is no message of a tree, with `text`, `role` and perhaps a `rank` among its siblings."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        return f"a message must have the 'role' {' or '.join(map(repr, ROLES))}, got {shown(message)}"
    if not isinstance(message.get("rank"), (int, float, type(None))):
        return f"'rank' must be a number, got {shown(message['rank'])}"
    return string_problem("text", message.get("text"))


def best_path(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Follow the best-ranked reply from a tree's prompt to the last answer of the assistant; None without an answer.

    Replies without a rank come last, ties in the order of the file; deleted and synthetic messages are passed over.
    """
    message, path = row["prompt"], []
    while message is not None and _is_kept(message):
        path.append(_turn(message))
        replies = [reply for reply in message.get("replies") or [] if _is_kept(reply)]
        message = min(replies, key=_rank, default=None)
    while path and path[-1]["role"] != "assistant":
        path.pop()
    return {"messages": path} if path and path[0]["role"] == "user" else None


def ranked_pairs(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Of each question in these trees that has ranked replies, the best and the worst, after all that was said before.

    Trees come with their places, and so do the rows made of them: `prompt`, `chosen` and `rejected`, lists of turns.
    """
    pairs: list[tuple[str, dict[str, Any]]] = []
    waiting: list[tuple[str, Message, list[dict[str, str]]]]
    waiting = [(place, row["prompt"], []) for place, row in reversed(rows)]
    while waiting:
        place, message, before = waiting.pop()
        if not _is_kept(message):
            continue
        turns = [*before, _turn(message)]
        replies = [reply for reply in message.get("replies") or [] if _is_kept(reply)]
        waiting += [(place, reply, turns) for reply in reversed(replies)]
        ranked = sorted((reply for reply in replies if reply.get("rank") is not None), key=_rank)
        answers = [_turn(ranked[at]) for at in (0, -1)] if ranked else []
        if answers and answers[0]["role"] == "assistant" and answers[0]["content"] != answers[1]["content"]:
            pairs.append((place, {"prompt": turns, "chosen": answers[:1], "rejected": answers[1:]}))
    return pairs


def gather_trees(messages: Sequence[tuple[str, Message]]) -> list[tuple[str, dict[str, Any]]]:
    """Put messages that are listed one by one, as on the Hub, into trees, in the order of their prompts.

    Each comes with its place, and has `message_id` and `parent_id`, which is null for a prompt. A tree's place is that
    of its prompt.
    """
    places = {message["message_id"]: place for place, message in messages}
    nodes = {message["message_id"]: {**message, "replies": []} for _, message in messages}
    trees = []
    for name, node in nodes.items():
        if node["parent_id"] is None:
            trees.append((places[name], {"prompt": node}))
        elif node["parent_id"] in nodes:  # else the parent was left out, and its replies with it
            nodes[node["parent_id"]]["replies"].append(node)
    return trees


def _turn(message: Message) -> dict[str, str]:
    return {"role": ROLES[message["role"]], "content": message["text"]}


def _is_kept(message: Message) -> bool:
    return not message.get("deleted") and not message.get("synthetic")


def _rank(message: Message) -> float:
    rank = message.get("rank")
    return float("inf") if rank is None else rank
