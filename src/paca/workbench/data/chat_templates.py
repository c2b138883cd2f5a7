"""Chat templates for tokenizers that have none, such as those of pretrained models that were never taught to chat."""

from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import one_line

# No token of its own, so that embeddings need not be trained; the EOS token tells where an answer ends.
_PLAIN = (
    "{% if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '### Assistant:\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Human:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
TEMPLATES = {"plain": _PLAIN}


def set_chat_template(tokenizer: Any, template: str | None) -> None:
    """Give a tokenizer the chat template that a recipe names: one of `TEMPLATES` or a file; None keeps its own.

    A PacaError if the file can't be read, or the tokenizer has no EOS token to close an answer with.
    """
    if template is None:
        return
    if template in TEMPLATES:
        if tokenizer.eos_token is None:
            raise PacaError(
                f"model.chat_template = {template!r} ends an answer with the tokenizer's EOS token, which that of "
                f"{tokenizer.name_or_path!r} has none of; give a template of your own in a file."
            )
        tokenizer.chat_template = TEMPLATES[template]
        return
    try:
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PacaError(f"The chat template {template!r} can't be read: {one_line(error)}") from error
