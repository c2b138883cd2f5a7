"""Conversations to tokens and labels: the model's chat template, loss on the assistant's turns only.

TRL's own `assistant_only_loss` needs a template with `{% generation %}` markers, which few models ship. Where neither
the model nor TRL has such a template, the assistant's turns are found in the rendered text: a turn is what a prompt
that asks for it (`add_generation_prompt`) is continued by.
"""

from collections.abc import Sequence
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import one_line

IGNORED = -100
Messages = Sequence[dict[str, str]]


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
    try:
        return get_training_chat_template(tokenizer) or tokenizer.chat_template
    except ValueError:  # no markers, and TRL does not know the template
        return None


def encode_conversation(tokenizer: Any, messages: Messages, template: str | None) -> dict[str, list[int]]:
    """Turn a conversation into `input_ids` and `labels`: the ids in the assistant's turns, EOS tokens too, else -100.

    `template` is what `training_template` chose. A PacaError if the assistant's turns cannot be told from the rest.
    """
    if template is not None:
        encoded = apply_template(
            tokenizer, messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        return _labelled(encoded["input_ids"], map(bool, encoded["assistant_masks"]))
    text, spans = assistant_spans(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = (any(start < b and a < end for start, end in spans) for a, b in encoded["offset_mapping"])
    return _labelled(encoded["input_ids"], mask)


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


def assistant_spans(tokenizer: Any, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation; return its text, and where each of the assistant's turns starts and ends.

    A turn goes from after the prompt that asks for it to its EOS token, without the white space that the template puts
    between turns. A PacaError if the template rewrites earlier turns, so that what precedes a turn does not find it.
    """
    text = _render(tokenizer, messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        upto, start, end = _last_turn(tokenizer, messages[: index + 1])
        if end < 0 or not text.startswith(upto):
            raise PacaError(
                f"The chat template of {tokenizer.name_or_path!r} does not keep turn {index + 1} as it was when later "
                "turns are added, so the assistant's words can't be told from the rest. Give the tokenizer a chat "
                "template with {% generation %} and {% endgeneration %} around the assistant's turns."
            )
        spans.append((start, end))
    return text, spans


def encode_reply(tokenizer: Any, turns: Messages, reply: Messages) -> dict[str, list[int]]:
    """Turn a conversation and the assistant's next turn into `input_ids` and `labels`; that turn alone is labelled.

    A PacaError if the turn does not go on from the prompt that asks for it.
    """
    text, start, end = _last_turn(tokenizer, [*turns, *reply])
    if end < 0:
        raise PacaError(
            f"The chat template of {tokenizer.name_or_path!r} does not begin an answer as the prompt that asks for it "
            "ends, so the answer can't be told from the rest; give another template as model.chat_template."
        )
    encoded = tokenizer(text[:end], add_special_tokens=False, return_offsets_mapping=True)
    return _labelled(encoded["input_ids"], (b > start for _, b in encoded["offset_mapping"]))


def _last_turn(tokenizer: Any, messages: Messages) -> tuple[str, int, int]:
    """Render a conversation; return its text, and where its last turn starts and ends; -1 if it can't be found."""
    prompt = _render(tokenizer, messages[:-1], add_generation_prompt=True)
    text, said = _render(tokenizer, messages), messages[-1]["content"].strip()
    content = text.find(said, len(prompt))
    end = max(len(text.rstrip()), content + len(said)) if text.startswith(prompt) and content >= 0 else -1
    return text, len(prompt), end


def _render(tokenizer: Any, messages: Messages, add_generation_prompt: bool = False) -> str:
    return apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def apply_template(tokenizer: Any, messages: Messages, **options: Any) -> Any:
    """Call `apply_chat_template`, and have the error of a template that refuses the turns say so."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise PacaError(
            f"The chat template of {tokenizer.name_or_path!r} can't write turns of the roles {roles}: "
            f"{one_line(error)}"
        ) from error


def _labelled(input_ids: list[int], mask: Any) -> dict[str, list[int]]:
    labels = [token if kept else IGNORED for token, kept in zip(input_ids, mask, strict=True)]
    return {"input_ids": list(input_ids), "labels": labels}
