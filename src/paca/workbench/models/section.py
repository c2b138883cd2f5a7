"""The recipe's section `model`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.workbench.base.messages import LONGEST_NAME, shown, suggestion
from paca.workbench.data.chat_templates import TEMPLATES
from paca.workbench.data.documents import missing_path
from paca.workbench.models.quantization import quantization_problems

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelSection:
    """Which base model, and in which precision.

    Args:
        name: `smollm2-135m-instruct` (embedded), a local folder, or a name on the Hugging Face Hub.
        dtype: `auto` is the precision that the model was saved in.
        quantization: `nf4`, `fp4` or `int8`, or a mapping of `BitsAndBytesConfig`'s arguments; not quantized when
            omitted. 4-bit layers compute in `dtype`.
        chat_template: How turns are written where the tokenizer says nothing of it, as that of a pretrained model:
            `plain`, or a file with a Jinja template. It is saved with the adapter.
        adapter: Train this adapter on, of a run or in a folder of its own, instead of making a new one; its method is
            its own. In a preference recipe it is also the reference, as it is before training.
        config: Fields of the model's configuration to override, such as
            `rope_parameters` for sequences longer than it was trained on.
    """

    name: str
    dtype: str = "auto"
    quantization: str | dict[str, Any] | None = None
    chat_template: str | None = None
    adapter: str | None = None
    config: dict[str, Any] | None = None


def model_problems(section: ModelSection) -> list[str]:
    """Say what is wrong with the values of a recipe's `model` section, whose types are checked already."""
    problems = quantization_problems(section.quantization)
    if not section.name or "\0" in section.name or len(section.name) > LONGEST_NAME:
        problems.append(f"model.name = {shown(section.name)}: expected a name or a folder")
    elif missing := missing_path(section.name, "folder"):
        problems.append(f"model.name: {missing}")
    if section.dtype not in DTYPES:
        problems.append(f"model.dtype = {section.dtype!r}: expected one of {', '.join(DTYPES)}")
    template = section.chat_template
    if template is not None and template not in TEMPLATES and not Path(template).is_file():
        problems.append(
            f"model.chat_template = {template!r}: expected {', '.join(TEMPLATES)}, or a file with a Jinja template"
            f"{suggestion(template, TEMPLATES)}"
        )
    return problems
