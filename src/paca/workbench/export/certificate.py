"""What a written artefact must have in common with the adapted model that it was made of, and whether it has.

Merged models that answer otherwise than the adapted one, lost ties between embeddings, vocabularies cut short and EOS
tokens gone missing are found here, before anyone is told that the export is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from paca.errors import first_few
from paca.tuner.export.merged import embeddings_are_tied
from paca.tuner.layers.quantized import unpacked_sizes

# Of several kinds, since a fault may show in some only: prose, code, figures, another script, a question.
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1969, 3 * 17 + 4 = 55, and 55 / 11 =",
    "Привет, мир! 你好，世界！ Ünïcödé:",
    "Question: Why is the sky blue?\nAnswer:",
)
CHAT = [{"role": "user", "content": "Name three primary colours."}]

# How far logits may lie apart, relative to their spread, in units of the dtype's rounding step. A LoRA rounds W₀·x and
# Δ·x apart, in every layer: over the 30 blocks of SmolLM2 that came to 30 steps in float32 and 10 in bfloat16. A
# merged model is compared bit for bit besides.
ROUNDINGS = {torch.float32: 256.0, torch.bfloat16: 16.0, torch.float16: 16.0, torch.float64: 256.0}


@dataclass(frozen=True)
class Facts:
    """What a model says about itself.

    Args:
        vocabulary: Rows of the input embeddings.
        tied: Whether input and output embeddings are one tensor.
        end_of_sequence: The tokenizer's EOS token, its id, and the ids at which generation stops.
        tokens: How many tokens the tokenizer knows.
        chat_template: Digest of the chat template; None without one.
        parameters: Elements of all parameters; a tied one counts once.
    """

    vocabulary: int
    tied: bool
    end_of_sequence: list[Any]
    tokens: int
    chat_template: str | None
    parameters: int


@dataclass(frozen=True)
class Check:
    """One comparison of an artefact with the adapted model.

    Args:
        name: What was compared.
        passed: Whether they agree.
        found: What the artefact has.
        expected: What the adapted model has, or the largest difference that is rounding.
    """

    name: str
    passed: bool
    found: Any
    expected: Any


@dataclass
class Reference:
    """What was noted of the adapted model, to be compared when it is gone.

    Args:
        facts: About the model and its tokenizer.
        inputs: Token ids of each prompt, shape `(1, tokens)`, or images, shape `(1, 3, height, width)`.
        logits: The adapted model's logits, shape `(tokens, vocabulary)` or `(classes,)`, float32, on the CPU.
        effect: How far the adapter moved the logits of the base model, relative to their spread.
        dtype: The precision that the model computes in.
        digests: Of every tensor that is going to be written, by its name in the model.
    """

    facts: Any
    inputs: list[Tensor]
    logits: list[Tensor]
    effect: float
    dtype: torch.dtype
    digests: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, tensor: Tensor) -> None:
        """Remember the digest of a tensor by its name in the model."""
        self.digests[name] = digest(tensor)


def facts(model: Any, tokenizer: Any) -> Facts:
    """Read what a model, adapted or plain, and its tokenizer say about themselves."""
    adapted = hasattr(model, "get_base_model")
    base = model.get_base_model() if adapted else model
    replaced = (f".{model.base_model.prefix}", ".original_module.") if adapted else ()  # adapters, and copied modules
    stops = base.generation_config.eos_token_id
    template = tokenizer.chat_template
    template = template if template is None or isinstance(template, str) else repr(sorted(template.items()))
    return Facts(
        vocabulary=base.get_input_embeddings().weight.shape[0],
        tied=embeddings_are_tied(base),
        end_of_sequence=[tokenizer.eos_token, tokenizer.eos_token_id, stops],
        tokens=len(tokenizer),
        chat_template=None if template is None else hashlib.sha256(template.encode()).hexdigest()[:16],
        parameters=sum(
            size for name, size in unpacked_sizes(base).items() if not any(part in name for part in replaced)
        ),
    )


def prompt_inputs(tokenizer: Any) -> list[Tensor]:
    """Tokenize the stored prompts, and a conversation where there is a chat template; each of shape `(1, tokens)`."""
    texts = list(PROMPTS)
    if tokenizer.chat_template is not None:
        texts.append(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    return [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]


@torch.no_grad()
def logits_of(model: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Compute a model's logits for each input, in float32 on the CPU, without the batch dimension."""
    model.eval()
    name = getattr(model, "main_input_name", "pixel_values")
    options = {"use_cache": False} if name == "input_ids" else {}
    return [model(**{name: given.to(model.device)}, **options).logits[0].float().cpu() for given in inputs]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """How far logits lie apart, relative to their spread: `‖L − L'‖ / ‖L − mean L‖`, the largest of all prompts.

    Infinite where shapes differ or a value is not finite.
    """
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
            return float("inf")
        spread = (theirs - theirs.mean(-1, keepdim=True)).norm()
        worst = max(worst, float((ours - theirs).norm() / spread.clamp_min(1e-30)))
    return worst


def digest(tensor: Tensor) -> str:
    """Digest a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    found = hashlib.blake2b(f"{plain.dtype}{tuple(plain.shape)}".encode(), digest_size=16)
    found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def refer(model: Any, facts: Any, inputs: list[Tensor]) -> Reference:
    """Note everything about an adapted model, its adapter active, that an artefact will be compared with."""
    logits = logits_of(model, inputs)
    with model.disable_adapter():
        base = logits_of(model, inputs)
    return Reference(facts, inputs, logits, difference(logits, base), computing_dtype(model))


def computing_dtype(model: Any) -> torch.dtype:
    """The coarsest precision that a model's layers compute in, quantized ones included."""
    found = [module.compute_dtype for module in model.modules() if getattr(module, "compute_dtype", None) is not None]
    found += [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    coarse = [dtype for dtype in found if dtype in ROUNDINGS]
    return max(coarse, key=lambda dtype: torch.finfo(dtype).eps, default=torch.bfloat16)


def logits_check(model: Any, reference: Reference) -> Check:
    """Compare the logits of a reloaded model with the adapted one's, as far as rounding does not explain them."""
    found = difference(logits_of(model, reference.inputs), reference.logits)
    bound = ROUNDINGS[reference.dtype] * torch.finfo(reference.dtype).eps
    return Check("logits", found <= bound, found, bound)


def facts_checks(found: Any, expected: Any) -> list[Check]:
    """Compare two models' facts, dataclasses of one kind, one check per fact."""
    ours, theirs = asdict(found), asdict(expected)
    return [Check(name, ours[name] == theirs[name], ours[name], theirs[name]) for name in theirs]


def tensor_check(state: Mapping[str, Tensor], digests: Mapping[str, str]) -> Check:
    """Compare every tensor of a reloaded model with the digests of what was to be written, bit for bit.

    The second name of a tied tensor may be missing. What was found names the first few tensors that differ.
    """
    differing = [name for name, value in digests.items() if name not in state or digest(state[name]) != value]
    shown = "all equal" if not differing else f"{len(differing)} differ: {first_few(differing, 3)}"
    return Check("tensors", not differing, shown, f"{len(digests)} tensors, bit for bit")
