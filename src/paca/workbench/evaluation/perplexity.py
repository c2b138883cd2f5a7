"""Loss and perplexity on texts or conversations, as `paca finetune` measures them on held-out data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from paca.errors import PacaError
from paca.workbench.data.conversations import IGNORED
from paca.workbench.data.documents import Documents
from paca.workbench.data.prepare import encode
from paca.workbench.evaluation.evaluated_model import EvaluatedModel
from paca.workbench.evaluation.journal import Journal
from paca.workbench.models.generation import context_length
from paca.workbench.training.held_out import HeldOut

SUMS = "sums.jsonl"


def measure_perplexity(
    evaluated: EvaluatedModel, documents: Documents, length: int, limit: int | None, batch_size: int, folder: Path
) -> dict[str, Any]:
    """Measure `loss`, `perplexity`, `tokens` and `sequences` of a model on documents, and count `all_sequences`.

    Text is cut into blocks of `length` tokens; in conversations, cut at that length, the assistant's turns carry loss.
    Of the sequences that this makes, the first `limit` are measured. Sums are kept in `folder` as they come. A
    PacaError if the context is too short, or nothing carries loss.
    """
    if length > context_length(evaluated.model):
        raise PacaError(f"--length {length}: the model reads {context_length(evaluated.model)} tokens at most.")
    every = encode(documents.is_text, documents.rows, evaluated.tokenizer, length)
    sequences = every[:limit]
    if not sequences:
        raise PacaError(f"Nothing in the texts carries loss within {length} tokens.")
    journal = Journal(folder / SUMS)
    starts = range(0, len(sequences), batch_size)
    for start in tqdm(starts, desc="measuring", initial=len(journal)):
        if str(start) not in journal:
            journal.add(str(start), summed_loss(evaluated.model, sequences[start : start + batch_size]))
    sums = [journal[str(start)] for start in starts]
    tokens = sum(count for _, count in sums)
    measured = HeldOut(sum(loss for loss, _ in sums) / tokens, tokens)
    return {**measured.to_dict(), "sequences": len(sequences), "all_sequences": len(every)}


@torch.no_grad()
def summed_loss(model: Any, sequences: Sequence[dict[str, list[int]]]) -> tuple[float, int]:
    """Sum the loss, in nats, over the tokens that carry it, and count these."""
    ids, labels = ([torch.tensor(sequence[key]) for sequence in sequences] for key in ("input_ids", "labels"))
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
    padded = pad_sequence(ids, batch_first=True).to(model.device)
    logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, 1:].reshape(-1).to(model.device)
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    return float(loss), int((targets != IGNORED).sum())
