"""The loss of a causal language model by torch's own linear cross-entropy, which makes no logits."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import has_hooks

ROWS = 512  # per tile of logits: enough for a fast product, and 260 MB in float32 at a vocabulary of 128 thousand
_IGNORED = -100
# With these, more is asked of the model than a loss.
_NEEDS_LOGITS = ("logits_to_keep", "return_dict", "ignore_index")


def loss_refusal(model: Any) -> str | None:
    """Why a causal language model must keep its own loss; None where nothing stands against another."""
    if not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy for its loss"
    if getattr(getattr(model, "loss_function", None), "__name__", "") != "ForCausalLMLoss":
        return "its loss is not transformers' own"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"its output head is {type(head).__name__}, whose product can't be taken apart"
    if has_hooks(head):
        return "hooks watch its output head, which would miss calls"
    return None


def with_lean_loss(kind: Any) -> Callable[..., Any]:
    """A forward that makes no logits where it is called with labels while gradients are computed."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        asked = any(kwargs.get(name) is not None for name in _NEEDS_LOGITS)
        trained = self.training and torch.is_grad_enabled()
        if labels is None or asked or not trained or _computes_in_16_bits(self) or loss_refusal(self):
            return kind.forward(self, *args, labels=labels, **kwargs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        targets = kwargs.pop("shift_labels", None)
        count = kwargs.pop("num_items_in_batch", None)
        outputs = self.base_model(*args, **kwargs)
        if targets is None:
            targets = F.pad(labels, (0, 1), value=_IGNORED)[..., 1:]
        return CausalLMOutputWithPast(
            loss=linear_cross_entropy(outputs.last_hidden_state, self.get_output_embeddings(), targets, count),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    return forward


def _computes_in_16_bits(model: Any) -> bool:
    """Whether logits would be in 16 bits: torch's operator rounds their loss to as many, transformers' does not."""
    weight = model.get_output_embeddings().weight
    autocast = torch.is_autocast_enabled(weight.device.type) and weight.dtype != torch.float64
    return autocast or weight.dtype.itemsize < torch.float32.itemsize


def linear_cross_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, count: Tensor | int | None = None
) -> Tensor:
    """The cross entropy of a head's logits, a tile of which is there at a time.

    Args:
        hidden: Shape `(batch, tokens, n)`.
        head: From `n` to the vocabulary.
        targets: Token ids, shape `(batch, tokens)`, -100 where there is none.
        count: What the sum over the targets is divided by; None for their number.

    Returns:
        A scalar, in the dtype of `hidden`.
    """
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=ROWS, chunking_method=None, allow_retain_graph=torch.compiler.is_compiling()
    )
    loss: Tensor = F.linear_cross_entropy(
        hidden.flatten(0, -2),
        head.weight,
        targets.reshape(-1).to(hidden.device),
        linear_bias=head.bias,
        reduction="mean" if count is None else "sum",
        ignore_index=_IGNORED,
        options=options,
    )
    return loss if count is None else loss / torch.as_tensor(count, device=loss.device)
