"""`training.optim: muon`: orthogonalized momentum for an adapter's matrices, AdamW for what else is trained.

Muon is torch's own. Its steps are scaled to the size of AdamW's, and it keeps one moment in place of two.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from paca.errors import PacaError


class Muon(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer, so that schedules, checkpoints and accelerate take it as any other.

    The state and the groups are this optimizer's; the two inner ones are handed theirs for each step.

    Args:
        groups: Groups of parameters, each with its `weight_decay`, as Trainer makes them.
        adapted: The model that they are of, which says what is a matrix of its adapter.
        lr: The learning rate of all.
        betas: AdamW's.
        eps: AdamW's.

    Raises:
        PacaError: If there is no matrix to train, or matrices are divided over ranks.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        adapted: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        matrices = {id(parameter) for parameter in adapter_matrices(adapted)}
        divided = _divided(groups, matrices)
        if not divided[True]:
            raise PacaError(
                "training.optim = 'muon' steps matrices, and this adapter has none: updates of convolutions and of "
                "fused experts have more dimensions. Leave optim out, which is AdamW, or adapt linear layers."
            )
        if any(isinstance(parameter, DTensor) for group in divided[True] for parameter in group["params"]):
            raise PacaError(
                "training.optim = 'muon' needs whole matrices, which no rank has in a sharded model; leave optim out, "
                "or train with DDP (recipes/accelerate/ddp.yaml)."
            )
        self._inner: dict[bool, torch.optim.Optimizer] = {
            True: torch.optim.Muon(divided[True], lr=lr, adjust_lr_fn="match_rms_adamw")
        }
        if divided[False]:
            self._inner[False] = torch.optim.AdamW(divided[False], lr=lr, betas=betas, eps=eps)
        super().__init__([group for inner in self._inner.values() for group in inner.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step what has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_matrix, inner in self._inner.items():
            inner.param_groups = [group for group in self.param_groups if group["matrices"] is is_matrix]
            inner.state = self.state
            inner.step()
        return loss


def _divided(groups: Sequence[Mapping[str, Any]], matrices: set[int]) -> dict[bool, list[dict[str, Any]]]:
    """Divide each group into its matrices and the rest; empty groups are left out."""
    divided: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in groups:
        for is_matrix, found in divided.items():
            chosen = [parameter for parameter in group["params"] if (id(parameter) in matrices) is is_matrix]
            if chosen:
                found.append({**group, "params": chosen, "matrices": is_matrix})
    return divided


def adapter_matrices(model: Any) -> list[nn.Parameter]:
    """The trained matrices of a `PeftModel`'s adapter; of another model, those that neither embed nor are its head."""
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad and value.dim() == 2]
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    if isinstance(prefix, str):
        return [value for name, value in trained if f".{prefix}" in name and "modules_to_save" not in name]
    outside = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outside += [head for head in [getattr(model, "get_output_embeddings", lambda: None)()] if head is not None]
    kept = {id(parameter) for module in outside for parameter in module.parameters()}
    return [value for _, value in trained if id(value) not in kept]


def use_muon(trainer: Any) -> None:
    """Have a `Trainer` step its model with Muon, at the rates and decay of its arguments."""
    arguments = trainer.args
    options = {
        "adapted": trainer.model,
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
    trainer.optimizer_cls_and_kwargs = (Muon, options)
