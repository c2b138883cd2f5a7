"""Which of two answers an adapter prefers, and how far it is from its base model or from another adapter."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from paca.errors import PacaError
from paca.workbench.data.documents import Documents
from paca.workbench.data.preference import encode_preferences
from paca.workbench.data.prepare import Counted
from paca.workbench.evaluation.evaluated_model import EvaluatedModel
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.request import Request
from paca.workbench.models.adapter_files import may_be_same_model, read_config
from paca.workbench.training.adapted import find_adapter, find_source, with_reference
from paca.workbench.training.held_out_preferences import Preferences, add_batch

SUMS = "sums.jsonl"


def find_reference(request: Request) -> Path | None:
    """Find the adapter that `--reference` names; None for the base model.

    A PacaError if what is evaluated can't be compared with it, or, merged, with anything.
    """
    if request.merged:
        raise PacaError(
            "preference compares an adapter with its base model, which --merged leaves no copy of. Leave --merged out."
        )
    if request.reference is None:
        return None
    reference = find_adapter(request.reference)
    for name in (request.model, *request.more):
        source = find_source(name)
        if source.adapter is None:
            raise PacaError(f"--reference compares adapters, and {name!r} is a model. Leave one of the two out.")
        if not may_be_same_model(source.base, reference.base):
            raise PacaError(
                f"--reference {request.reference!r} is an adapter of {reference.base!r}, and {name!r} one of "
                f"{source.base!r}. Name a reference of the same base model."
            )
        kinds = [read_config(adapter).get("peft_type") for adapter in (source.adapter, reference.adapter) if adapter]
        if len(set(kinds)) > 1:
            raise PacaError(
                f"--reference {request.reference!r} is an adapter of the method {kinds[1]}, and {name!r} one of "
                f"{kinds[0]}: one model holds adapters of one method. Name a reference of {kinds[0]}."
            )
    return reference.adapter


def measure_preferences(
    evaluated: EvaluatedModel, documents: Documents, request: Request, folder: Path, reference: Path | None = None
) -> dict[str, Any]:
    """Measure what `paca finetune` measures of held-out preferences, compared with the base model or a reference.

    Sums are kept in `folder` as they come. A PacaError if no row has anything to prefer within `--length` tokens.

    Args:
        evaluated: The model.
        documents: The rows.
        request: Tells how many rows, how long, how many at a time, and beta.
        folder: Of this evaluation.
        reference: An adapter's folder, as `find_reference` finds it.

    Returns:
        What result.json holds.
    """
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    tokenizer, paired = evaluated.tokenizer, all("chosen" in row for row in documents.rows)
    counted = Counted()
    rows = encode_preferences(documents.rows, tokenizer, request.length, paired, counted)[: request.limit]
    if not rows:
        raise PacaError(f"Nothing in the texts can be preferred within {request.length} tokens.")
    padding = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    collate = (DataCollatorForPreference if paired else DataCollatorForUnpairedPreference)(padding, request.length)
    journal = Journal(folder / SUMS)
    found = Preferences(paired=paired)
    starts = range(0, len(rows), request.batch_size)
    missing = [start for start in starts if str(start) not in journal]
    with ExitStack() as lent:
        if missing and reference is not None:
            lent.enter_context(with_reference(evaluated.model, reference))
        for start in tqdm(missing, desc="measuring", initial=len(journal), total=len(starts)):
            part, model = Preferences(), evaluated.model
            batch = collate(rows[start : start + request.batch_size])
            add_batch(model, {key: batch[key].to(model.device) for key in batch}, request.beta, part)
            journal.add(str(start), asdict(part))
    for start in starts:
        kept = journal[str(start)]
        found.liked += kept["liked"]
        found.disliked += kept["disliked"]
        found.kl += kept["kl"]
        found.tokens += kept["tokens"]
    return {
        **found.to_dict(),
        "rows": len(rows),
        "reference": request.reference,
        "cut": {"rows": counted.cut, "of": len(counted.lengths), "left_out": counted.dropped, "at": request.length},
    }
