"""The model card beside an adapter: how to load it, on what base, what was trained, with which versions."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from huggingface_hub import ModelCard
from peft.config import PeftConfig

from ..errors import DISTRIBUTION
from ..profiling.environment import versions

FILE = "README.md"
# What PEFT's card bears, whose sections are all empty, and TRL's, which loads a whole model where an adapter lies.
TEMPLATES = ("# Model Card for Model ID", "It has been trained using [TRL](https://github.com/huggingface/trl).")
VERSIONED = (DISTRIBUTION, "peft", "torch", "transformers")
UNTOLD = {  # of a configuration: what the card says elsewhere, and what describes no training
    *("peft_type", "task_type", "base_model_name_or_path", "auto_mapping", "peft_version", "inference_mode"),
}
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
CITATION = """\
## Citation

```bibtex
@inproceedings{woo2025paca,
  title     = {{PaCA}: Partial Connection Adaptation for Efficient Fine-Tuning},
  author    = {Woo, Sunghyeon and Namkung, Sol and Lee, Sunwoo and Jeong, Inho and Kim, Beomseok and Jeon, Dongsuk},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2503.01905}
}
```
"""
WITHOUT_IMPORT = f"""\
PEFT up to 0.21 does not know the method: without `import paca` it raises `KeyError: 'PACA'`. The module comes with
`pip install {DISTRIBUTION}`."""


def describe_adapter(
    folder: str, config: PeftConfig, more: str = "", note: str = "", public: bool = True, replace: bool = False
) -> None:
    """Put a card in the place of the one that PEFT or TRL has written; any other stays.

    Args:
        folder: The adapter's folder.
        config: Its configuration, of any method.
        more: Further sections, in Markdown.
        note: A sentence about the base model.
        public: Whether a base model that is no folder is a repository of the Hub.
        replace: Write it whatever is there.
    """
    path = os.path.join(folder, FILE)
    if not os.path.isfile(path):
        return
    card = ModelCard.load(path)
    if not replace and not any(mark in card.text for mark in TEMPLATES):
        return
    base = config.base_model_name_or_path or ""
    named = bool(base) and not _is_local(base)
    if not (named and public):  # the Hub takes the name of a repository alone
        card.data.pop("base_model", None)
        card.data["tags"] = [tag for tag in card.data.get("tags") or () if not tag.startswith("base_model:")]
    is_paca = config.peft_type == "PACA"
    sections = [
        f"# {'PaCA' if is_paca else str(getattr(config.peft_type, 'value', config.peft_type))} adapter",
        f"{_base_sentence(base, named)} {note}".strip(),
        f"## How to load it\n\n```python\n{_snippet(base, str(config.task_type or ''), is_paca)}```",
        *([WITHOUT_IMPORT] if is_paca else []),
        more,
        f"## Configuration\n\n```json\n{_fields(config)}\n```",
        "### Framework versions\n\n" + "\n".join(_version_lines()),
        *([CITATION] if is_paca else []),
    ]
    card.text = "\n\n".join(section.strip("\n") for section in sections if section) + "\n"
    card.save(path)


def _is_local(base: str) -> bool:
    return os.path.isabs(base) or os.path.exists(base) or base.count("/") > 1


def _base_sentence(base: str, named: bool) -> str:
    if named:
        return f"It belongs to the base model `{base}`."
    if base:
        return (
            f"It belongs to a base model that lay in the folder `{base}` of the machine where it was trained, and has "
            "no name by which others could load it."
        )
    return "It belongs to a base model without a name; the one that made it is the one to put it on."


def _snippet(base: str, task: str, is_paca: bool) -> str:
    auto_class = AUTO_CLASSES.get(task)
    load = f'{auto_class}.from_pretrained("{base or "BASE-MODEL"}")' if auto_class else "...  # the base model"
    lines = [
        *(["import paca  # makes PEFT know the method"] if is_paca else []),
        "from peft import PeftModel",
        *([f"from transformers import {auto_class}"] if auto_class else []),
        "",
        f"model = {load}",
        'model = PeftModel.from_pretrained(model, "THIS-FOLDER")',
    ]
    return "\n".join(lines) + "\n"


def _fields(config: Any) -> str:
    """The fields that differ from their defaults, and the rank, as JSON."""
    told = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name not in UNTOLD and (value != default or field.name == "r"):
            told[field.name] = sorted(value) if isinstance(value, set) else value
    return json.dumps(told, indent=2)


def _version_lines() -> list[str]:
    # PEFT adds a line on itself to a card that has none of this form.
    return [f"- {name.upper() if name == 'peft' else name} {version}" for name, version in versions(VERSIONED).items()]
