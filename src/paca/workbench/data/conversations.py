"""Conversations to tokens and labels: the model's chat template, loss on the assistant's turns only."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paca.errors import PacaError
from paca.workbench.data.formats import Row
from paca.workbench.data.remarks import Remarks
from paca.workbench.data.rendering import (
    Chat,
    Rendered,
    Span,
    last_turn,
    rendered,
    template_errors_told,
    with_fitting_arguments,
)
from paca.workbench.data.turns import TRAIN, Turn
from paca.workbench.data.written import Traced, missing_parts, remarks_on, trace, turns_of_spans, unread_fields

IGNORED = -100


def encode_conversation(
    tokenizer: Any, row: Row, template: str | None, remarks: Remarks | None = None
) -> dict[str, list[int]]:
    """Turn a row with `messages` into `input_ids` and `labels`: the ids in the assistant's turns, else -100.

    EOS tokens of these turns are labelled too; turns with `train: False` are not. `template` is what
    `training_template` chose; what it leaves out is added to `remarks`. A PacaError if an answer itself would be lost,
    or the assistant's turns cannot be told from the rest.
    """
    chat = Chat(row["messages"], row.get("tools"), row.get("chat_template_kwargs", {}))
    chat = with_fitting_arguments(tokenizer, chat, template)
    written, traced = rendered(tokenizer, chat, template), trace(tokenizer, chat, template)
    told = remarks_on(chat, missing_parts(chat, traced))
    if remarks is not None:
        for remark in told:
            remarks.add(remark, row.place)
        source = template or tokenizer.get_chat_template(None, chat.tools)
        remarks.columns.update(dict.fromkeys(f"messages.{key}" for key in unread_fields(chat, source)))
    learned = _learned_spans(chat, written, traced)
    encoded = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    mask = (any(start < b and a < end for start, end in learned) for a, b in encoded["offset_mapping"])
    return _labelled(encoded["input_ids"], mask)


def _learned_spans(chat: Chat, written: Rendered, traced: Traced) -> list[Span]:
    learned = [answer for answer in chat.answers if chat.messages[answer].get(TRAIN, True)]
    if learned == chat.answers:
        return written.spans
    turns = turns_of_spans(written, traced)
    if turns is None or not set(turns) >= set(chat.answers):
        raise PacaError(
            "some of its answers are to carry no loss (weight 0, train false), but the chat template does not mark "
            "each of the assistant's turns by itself. Split the conversation before them, or name a template that "
            "does with model.chat_template."
        )
    return [span for span, turn in zip(written.spans, turns, strict=True) if turn in learned]


def encode_reply(
    tokenizer: Any, turns: Sequence[Turn], reply: Sequence[Turn], remark: Callable[[str], None] = lambda _: None
) -> dict[str, list[int]]:
    """Turn a conversation and the assistant's next turn into `input_ids` and `labels`; that turn alone is labelled.

    What the chat template leaves out is told to `remark`. A PacaError if the turn does not go on from the prompt that
    asks for it, or would be lost.
    """
    past = [{**turn, TRAIN: False} for turn in turns]  # what is lost of these is no answer
    chat = with_fitting_arguments(tokenizer, Chat([*past, *reply]), None)
    text, (start, end) = last_turn(tokenizer, chat)
    for told in remarks_on(chat, missing_parts(chat, trace(tokenizer, chat, None))):
        remark(told)
    encoded = tokenizer(text[:end], add_special_tokens=False, return_offsets_mapping=True)
    return _labelled(encoded["input_ids"], (b > start for _, b in encoded["offset_mapping"]))


def encode_completion(tokenizer: Any, prompt: str, completion: str) -> dict[str, list[int]]:
    """Turn a prompt and its completion into `input_ids` and `labels`, without a chat template.

    The completion carries loss, with the EOS token behind it; so does a token that reaches into it from the prompt.
    """
    encoded = tokenizer(prompt + completion, return_offsets_mapping=True)
    ids, mask = list(encoded["input_ids"]), [end > len(prompt) for _, end in encoded["offset_mapping"]]
    eos = tokenizer.eos_token_id
    if eos is None:
        return _labelled(ids, mask)
    if ids[-1:] == [eos]:  # some tokenizers put it there themselves
        return _labelled(ids, [*mask[:-1], True])
    return _labelled([*ids, eos], [*mask, True])


def apply_template(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> Any:
    """Call `apply_chat_template`, and have the error of a template that refuses the turns say so."""
    with template_errors_told(tokenizer, messages):
        return tokenizer.apply_chat_template(list(messages), **options)


def _labelled(input_ids: list[int], mask: Iterable[bool]) -> dict[str, list[int]]:
    labels = [token if kept else IGNORED for token, kept in zip(input_ids, mask, strict=True)]
    return {"input_ids": list(input_ids), "labels": labels}
