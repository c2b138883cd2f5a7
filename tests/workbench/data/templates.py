"""The chat templates that TRL brings along, on the tiny tokenizer, and conversations whose parts can be told apart."""

from functools import cache
from pathlib import Path

import trl
from tests.workbench.tiny import make_tokenizer

from paca.workbench.data.conversations import IGNORED
from paca.workbench.data.formats import convert_rows
from paca.workbench.data.remarks import Remarks

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
# Those of models that see pictures want lists for contents.
WANT_LISTS = {"idefics3", "llava_next", "smolvlm"}
THINKS = {"qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "muse_glimmer"}  # in every turn


def template(name):
    return FOLDER / f"{name}.jinja"


@cache
def tokenizer_of(name):
    """A tokenizer with one of these templates; `bos_token` is there, as some add it to strings."""
    tokenizer = make_tokenizer(template(name).read_text(encoding="utf-8"))
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def unknown_to_trl(name):
    """The same with a template that TRL does not recognise, so that turns are found by prompts."""
    tokenizer = make_tokenizer(template(name).read_text(encoding="utf-8") + "{# mine #}")
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def converted(row, **options):
    """One row as it is encoded, and what was said of it."""
    remarks = Remarks()
    (made,) = convert_rows([("file:1", row)], remarks=remarks, **options)
    return made, remarks


def learned_text(tokenizer, encoded):
    """All that carries loss, as text."""
    return tokenizer.decode([label for label in encoded["labels"] if label != IGNORED])
