"""What is left of an adapter after training: how long merging takes, and how fast the model is before and after."""

import time
from typing import Any

import torch
from torch import Tensor

from paca.profiling.steps import lower_quartile

_REPEATS = 5


def after_training(trainer: Any, data: Any) -> dict[str, Any]:
    """Time a forward pass, merge, and time it again. The trainer's model is merged afterwards.

    Args:
        trainer: Whose model was trained.
        data: Sequences; the first batch is used.

    Returns:
        `latency_ms`, and for an adapter `merge_ms`, `merged_latency_ms` and `merged_differs`, the largest difference
        of a logit over the logits' spread; or `merge_error`, what the method says instead of merging.
    """
    from peft import PeftModel

    model = trainer.model.eval()
    batch = trainer._prepare_inputs(dict(next(iter(trainer.get_eval_dataloader(data)))))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), trainer.compute_loss_context_manager():
        latency, logits = _timed(model, inputs)
        found: dict[str, Any] = {"latency_ms": latency}
        if not isinstance(model, PeftModel):
            return found
        try:
            started = time.perf_counter()
            merged = model.merge_and_unload()
            _settle(logits)
            found["merge_ms"] = 1000 * (time.perf_counter() - started)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return found | {"merge_error": f"{type(error).__name__}: {error}"[:300]}
        found["merged_latency_ms"], after = _timed(merged.eval(), inputs)
    rows = min(logits.shape[-2], after.shape[-2])  # virtual tokens of prompt tuning come first
    difference = (logits[..., -rows:, :] - after[..., -rows:, :]).abs().max()
    return found | {"merged_differs": float(difference / logits.std())}


def _timed(model: Any, inputs: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Milliseconds of a forward pass, the lower quartile of a few after a first one; and its logits."""
    times = []
    logits = model(**inputs).logits
    for _ in range(_REPEATS):
        _settle(logits)
        started = time.perf_counter()
        logits = model(**inputs).logits
        _settle(logits)
        times.append(1000 * (time.perf_counter() - started))
    return lower_quartile(times), logits.float()


def _settle(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
