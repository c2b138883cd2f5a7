"""`paca.lean`: gives the modules of a model their lean forwards."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from ..errors import PacaError
from .activations import is_activation
from .forms import FORMS, LOSS, Form, form_of

_TORCH_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_GATED_PARTS = 3  # projections: of the gate, of what it gates, and back


@dataclass(frozen=True)
class LeanReport:
    """What `paca.lean` did.

    Args:
        changed: How many modules got a lean forward, by the name of their class; a model whose loss is computed
            without its logits is among them.
        left: Why modules that may keep more than they must were left alone, by the name of their class.
    """

    changed: Mapping[str, int]
    left: Mapping[str, str]

    def __str__(self) -> str:
        changed = ", ".join(f"{name} × {count}" for name, count in self.changed.items()) or "no module"
        left = "".join(f"; left alone: {name}, {why}" for name, why in self.left.items())
        return f"lean forwards for {changed}{left}"


def lean(model: nn.Module, loss: bool = True) -> LeanReport:
    """Have a model keep less for backward: what is cheap is computed again there, and no matrix product is.

    Gated activations, norms, activations that transformers writes in several operations, and dropout get forwards that
    keep the least; rotary embeddings get a shorter backward. Values are the same: bit for bit where backward runs the
    operations that autograd would, else within a rounding. It works for any method, before or after `get_peft_model`;
    a module that dropout or a norm is added to later needs another call. Modules that were changed already stay as
    they are.

        model = AutoModelForCausalLM.from_pretrained(...)
        print(paca.lean(model))

    Args:
        model: Any module; transformers' and timm's have most of the classes that are known. Changed in place.
        loss: Also compute the loss of a causal language model that is called with `labels` in training by torch's
            `linear_cross_entropy`, which makes no logits, so that the output has none. In 16 bits transformers' own
            loss stays: torch's operator would round it to 16 bits. TRL's trainers have a chunked loss of their own,
            which this one leaves alone.

    Returns:
        What was changed, and what was left alone and why; the latter is warned of, too.

    Raises:
        PacaError: If `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise PacaError(
            f"paca.lean changes the modules of a model, got {type(model).__name__}; pass the model itself."
        )
    forms = (*FORMS, LOSS) if loss else FORMS
    changed: Counter[str] = Counter()
    left: dict[str, str] = {}
    for module in list(model.modules()):
        kind: Any = type(module)
        if hasattr(kind, "lean_of"):
            continue
        form = form_of(kind, forms)
        why = _unknown(module) if form is None else _refusal(module, form)
        if why:
            left[kind.__name__] = why
        elif form is not None:
            module.__class__ = lean_class(kind, form)
            changed[kind.__name__] += 1
    if left:
        listed = "; ".join(f"{name}, {why}" for name, why in left.items())
        warnings.warn(f"paca.lean left alone: {listed}.", stacklevel=2)
    return LeanReport(dict(changed), left)


def _refusal(module: Any, form: Form) -> str | None:
    return "its forward was replaced already" if "forward" in module.__dict__ else form.refuse(module)


def _unknown(module: nn.Module) -> str | None:
    """Say so of what looks like a norm or a gated activation; norms of torch itself keep the least as they are."""
    kind = type(module)
    own = list(module.parameters(recurse=False))
    parts = list(module.children())
    norm = kind.__name__.endswith("Norm") and own and not isinstance(module, _TORCH_NORMS)
    activated = any(is_activation(part) for part in parts)
    gated = activated and (bool(own) or sum(any(True for _ in part.parameters()) for part in parts) >= _GATED_PARTS)
    return "no lean forward is known for its code" if norm or gated else None


@cache
def lean_class(kind: Any, form: Form) -> Any:
    """Derive the class with a form's lean forward; modules become of it, and keep everything that they have.

    It bears the plain one's name, by which FSDP and transformers find classes, and is copied and pickled by way of it.
    """
    namespace = {
        "forward": form.make(kind),
        "lean_of": kind,
        "__reduce_ex__": _reduce,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), namespace)


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    plain: tuple[Any, ...] = object.__reduce_ex__(module, protocol)  # type: ignore[assignment]
    return _restore, (type(module).lean_of,), *plain[2:]


def _restore(kind: Any) -> Any:
    """Make an empty module of a class's lean one, or of the class itself where it is no longer known."""
    form = form_of(kind, (*FORMS, LOSS))
    made = kind if form is None else lean_class(kind, form)
    return made.__new__(made)
