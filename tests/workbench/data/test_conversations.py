"""Exactly the assistant's tokens carry loss."""

import json

import pytest
from tests.paths import SHARED
from tests.workbench.tiny import CHAT_TEMPLATE, make_tokenizer

from paca import PacaError
from paca.workbench.data.chat_templates import set_chat_template
from paca.workbench.data.conversations import IGNORED, encode_conversation
from paca.workbench.data.formats import Row
from paca.workbench.data.rendering import Chat, rendered, training_template

CONVERSATION = [
    {"role": "user", "content": "Who jumps?"},
    {"role": "assistant", "content": "The cat."},
    {"role": "user", "content": "The cat."},  # the assistant's words in the user's mouth
    {"role": "assistant", "content": " Over the mat. "},
]
WITH_MARKERS = CHAT_TEMPLATE.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}",
)
# Like templates of reasoning models: what an earlier turn looks like depends on what follows.
REWRITING = CHAT_TEMPLATE.replace(
    "message['content'] + '<|im_end|>\n'",
    "('(earlier) ' if message['role'] == 'assistant' and not loop.last else '') + message['content'] + '<|im_end|>\n'",
)
OASST = SHARED / "data" / "oasst" / "chat.jsonl"


def encode(tokenizer, messages, template=None):
    return encode_conversation(tokenizer, Row({"messages": messages}, "here"), template)


def learned_pieces(tokenizer, encoded):
    """The text of each run of tokens that carries loss."""
    pieces, piece = [], []
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (token, IGNORED)
        if label == token:
            piece.append(token)
        elif piece:
            pieces.append(tokenizer.decode(piece))
            piece = []
    return [*pieces, tokenizer.decode(piece)] if piece else pieces


def test_loss_on_the_assistants_turns_and_their_end_marks_only(tokenizer):
    encoded = encode(tokenizer, CONVERSATION, training_template(tokenizer))
    assert learned_pieces(tokenizer, encoded) == ["The cat.<|im_end|>", " Over the mat. <|im_end|>"]
    assert tokenizer.decode(encoded["input_ids"]) == tokenizer.apply_chat_template(CONVERSATION, tokenize=False)


def test_a_template_with_markers_gives_the_same():
    plain, marked = make_tokenizer(), make_tokenizer(WITH_MARKERS)
    assert training_template(plain) is None
    assert training_template(marked) == WITH_MARKERS
    assert encode(marked, CONVERSATION, WITH_MARKERS) == encode(plain, CONVERSATION)


def test_what_is_not_learned_is_the_prompt_of_inference(tokenizer):
    written = rendered(tokenizer, Chat(CONVERSATION), None)
    start, _ = written.spans[-1]
    assert written.text[:start] == tokenizer.apply_chat_template(
        CONVERSATION[:-1], tokenize=False, add_generation_prompt=True
    )


def test_a_template_that_rewrites_turns_is_refused():
    tokenizer = make_tokenizer(REWRITING)
    assert len(rendered(tokenizer, Chat(CONVERSATION[:2]), None).spans) == 1
    with pytest.raises(PacaError, match=r"does not keep turn 2 as it was.*\{% generation %\}"):
        rendered(tokenizer, Chat(CONVERSATION), None)


def test_no_template_at_all():
    with pytest.raises(PacaError, match=r"has no chat template.*JSONL with a 'text' key"):
        training_template(make_tokenizer(chat_template=None))


@pytest.mark.skipif(not OASST.exists(), reason="the shared data folder is not there")
def test_real_conversations(tokenizer):
    for line in OASST.read_text(encoding="utf-8").split("\n")[:20]:
        messages = json.loads(line)["messages"] if line else []
        answers = [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]
        encoded = encode(tokenizer, messages) if messages else {"input_ids": [], "labels": []}
        assert learned_pieces(tokenizer, encoded) == answers


def test_a_template_for_tokenizers_without_one():
    tokenizer = make_tokenizer(chat_template=None)
    set_chat_template(tokenizer, None)
    assert tokenizer.chat_template is None
    set_chat_template(tokenizer, "plain")
    encoded = encode(tokenizer, CONVERSATION, training_template(tokenizer))
    assert learned_pieces(tokenizer, encoded) == ["The cat.<|im_end|>", " Over the mat. <|im_end|>"]
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "### Human:\nWho jumps?\n\n### Assistant:\n"
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False).startswith(prompt + "The cat.<|im_end|>")


def test_a_template_from_a_file(tmp_path):
    tokenizer = make_tokenizer(chat_template=None)
    path = tmp_path / "mine.jinja"
    path.write_text(WITH_MARKERS)
    set_chat_template(tokenizer, str(path))
    assert tokenizer.chat_template == WITH_MARKERS
    path.write_text("{% for x in %}")
    set_chat_template(tokenizer, str(path))
    with pytest.raises(PacaError, match=r"can't write turns of the roles user: Expected an expression"):
        encode(tokenizer, CONVERSATION[:1])


def test_a_template_that_refuses_a_conversation():
    tokenizer = make_tokenizer("{{ raise_exception('turns must alternate') }}")
    with pytest.raises(PacaError, match=r"can't write turns of the roles user, assistant: turns must alternate"):
        encode(tokenizer, CONVERSATION[:2])
