"""Writes an adapter in another format, loads that again, and compares; what differs is never left behind."""

import gc
import json
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paca.errors import PacaError
from paca.tuner.export.lora import write_lora
from paca.tuner.export.merged import write_merged
from paca.tuner.export.peft_format import write_peft
from paca.workbench.base.files import discard, is_ours, write_folder
from paca.workbench.base.options import size
from paca.workbench.base.waiting import stage
from paca.workbench.export.certificate import (
    Check,
    Reference,
    facts,
    facts_checks,
    logits_check,
    prompt_inputs,
    refer,
    tensor_check,
)
from paca.workbench.export.classifier import classifier_adapter
from paca.workbench.export.classifier import facts as classifier_facts
from paca.workbench.export.classifier import load as load_classifier
from paca.workbench.training.adapted import find_adapter, load_adapted, put_on
from paca.workbench.training.report import versions

CERTIFICATE = "certificate.json"


@dataclass
class Export:
    """One export on its way.

    Args:
        model: The adapted model; gone once it has been written as a merged one.
        tokenizer: Its tokenizer; None of an image classifier.
        reference: What was noted of it.
        max_shard_size: Of a merged model's files, in bytes.
    """

    model: Any
    tokenizer: Any
    reference: Reference
    max_shard_size: int


class Format(NamedTuple):
    """A format that an adapter can be written in: what writes it into an empty folder, and what compares it then."""

    write: Callable[[Export, Path], None]
    check: Callable[[Export, Path], list[Check]]


def export(
    adapter: str,
    to: str,
    folder: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an adapter in another format, verified.

    Args:
        adapter: A run's output folder, or an adapter's.
        to: A key of `FORMATS`; of an image classifier, of `CLASSIFIER_FORMATS`.
        folder: Where it goes; beside the adapter, under the format's name, when omitted.
        dtype: The precision to hold the base model in; that of the run when omitted.
        max_shard_size: Of a merged model's files: `5GB`, `200MB`.
        overwrite: Replace an earlier export.

    Returns:
        What the certificate holds, and where the artefact is, as `folder`.

    Raises:
        PacaError: If the adapter can't be written so, or the artefact does not agree with the adapted model.
    """
    shard_bytes = _shard_bytes(max_shard_size)
    of_classifier = classifier_adapter(adapter)
    if of_classifier is not None and to not in CLASSIFIER_FORMATS:
        raise PacaError(
            f"--to {to}: {str(of_classifier)!r} is the adapter of an image classifier, whose head no other program "
            f"takes with an adapter. Type --to {' or '.join(CLASSIFIER_FORMATS)}."
        )
    found = of_classifier or find_adapter(adapter).adapter or Path()
    place = Path(folder) if folder else found.resolve().parent / to
    if is_ours(place, CERTIFICATE, "export") and not overwrite:
        raise PacaError(
            f"The output folder {str(place)!r} holds an earlier export; add --overwrite to replace it, or name "
            "another with --output DIR."
        )
    exported, base = _loaded(adapter, of_classifier, dtype, shard_bytes)
    formats = FORMATS if of_classifier is None else CLASSIFIER_FORMATS
    what = {"format": to, "adapter": str(found), "base_model": base}
    certificate: dict[str, Any] = {}

    def write(temporary: Path) -> None:
        stage(f"writing {to}")
        try:
            formats[to].write(exported, temporary)
            certificate.update(_certified(exported, formats[to], what, temporary))
        except BaseException:
            discard(temporary)
            raise

    write_folder(place, write)
    return {**certificate, "folder": str(place)}


def _shard_bytes(text: str) -> int:
    try:
        return size(text)
    except ArgumentTypeError as error:
        raise PacaError(f"--max-shard-size: {error}.") from error


def _loaded(adapter: str, of_classifier: Path | None, dtype: str | None, max_shard_size: int) -> tuple[Export, str]:
    """The adapted model and what was noted of it, and the name of its base."""
    if of_classifier is not None:
        classifier, reference, base = load_classifier(of_classifier, dtype)
        return Export(classifier, None, reference, max_shard_size), base
    source = find_adapter(adapter)
    model, tokenizer = load_adapted(source, dtype)
    reference = refer(model, facts(model, tokenizer), prompt_inputs(tokenizer))
    return Export(model, tokenizer, reference, max_shard_size), source.base


def _certified(exported: Export, written: Format, what: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    stage("loading what was written, and comparing")
    checks = written.check(exported, folder)
    failed = [check for check in checks if not check.passed]
    if failed:
        listed = "\n".join(f"  - {check.name}: {check.found}, expected {check.expected}" for check in failed)
        raise PacaError(
            f"The export as {what['format']!r} does not agree with the adapted model, so nothing was left:\n{listed}"
        )
    certificate = {
        **what,
        "dtype": str(exported.reference.dtype).removeprefix("torch."),
        "inputs": len(exported.reference.inputs),
        "effect_of_the_adapter": exported.reference.effect,
        "checks": [asdict(check) for check in checks],
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "versions": versions(),
    }
    (folder / CERTIFICATE).write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return certificate


def _write_merged(exported: Export, folder: Path) -> None:
    write_merged(exported.model, folder, exported.max_shard_size, exported.reference.note)
    exported.model = None
    gc.collect()
    exported.tokenizer.save_pretrained(folder)


def _check_merged(exported: Export, folder: Path) -> list[Check]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        logits_check(model, exported.reference),
        tensor_check(model.state_dict(), exported.reference.digests),
        *facts_checks(facts(model, tokenizer), exported.reference.facts),
    ]


def _check_adapter(exported: Export, folder: Path) -> list[Check]:
    """Put the written adapter on the base model that the original one has given back, bit for bit."""
    base, exported.model = exported.model.unload(), None
    model = put_on(base, folder)
    return [logits_check(model, exported.reference)]


def _write_merged_classifier(exported: Export, folder: Path) -> None:
    exported.model.merge_and_unload().save_pretrained(folder, max_shard_size=exported.max_shard_size)
    exported.model = None


def _check_merged_classifier(exported: Export, folder: Path) -> list[Check]:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder)
    found = facts_checks(classifier_facts(model), exported.reference.facts)
    return [logits_check(model, exported.reference), *found]


FORMATS = {
    "merged": Format(_write_merged, _check_merged),
    "lora": Format(lambda exported, folder: write_lora(exported.model, folder), _check_adapter),
    "peft": Format(lambda exported, folder: write_peft(exported.model, folder), _check_adapter),
}
CLASSIFIER_FORMATS = {"merged": Format(_write_merged_classifier, _check_merged_classifier)}
