"""Which of two answers an adapter prefers, and how far it is from its base model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from paca.errors import PacaError
from paca.workbench.data.documents import Documents
from paca.workbench.data.preference import encode_preferences
from paca.workbench.evaluation.evaluated_model import EvaluatedModel
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.request import Request
from paca.workbench.training.held_out_preferences import Preferences, add_batch

SUMS = "sums.jsonl"


def measure_preferences(
    evaluated: EvaluatedModel, documents: Documents, request: Request, folder: Path
) -> dict[str, Any]:
    """Measure what `paca finetune` measures of held-out preferences, compared with the base model.

    Sums are kept in `folder` as they come. A PacaError if no row has anything to prefer within `--length` tokens.
    """
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    tokenizer, paired = evaluated.tokenizer, "chosen" in documents.rows[0]
    rows = encode_preferences(documents.rows, tokenizer, request.length, paired)[: request.limit]
    if not rows:
        raise PacaError(f"Nothing in the texts can be preferred within {request.length} tokens.")
    padding = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    collate = (DataCollatorForPreference if paired else DataCollatorForUnpairedPreference)(padding, request.length)
    journal = Journal(folder / SUMS)
    found = Preferences(paired=paired)
    for start in tqdm(range(0, len(rows), request.batch_size), desc="measuring", initial=len(journal)):
        if str(start) not in journal:
            part = Preferences()
            batch, model = collate(rows[start : start + request.batch_size]), evaluated.model
            add_batch(model, {key: batch[key].to(model.device) for key in batch}, request.beta, part)
            journal.add(str(start), asdict(part))
        kept = journal[str(start)]
        found.liked += kept["liked"]
        found.disliked += kept["disliked"]
        found.kl += kept["kl"]
        found.tokens += kept["tokens"]
    return {**found.to_dict(), "rows": len(rows)}
