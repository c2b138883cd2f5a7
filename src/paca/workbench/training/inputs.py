"""What a run was started on: digests of its data, kept with it, so that it is resumed on the same.

Resumed on other data, a run would train on a mixture that nobody chose, and compare a figure of the one held-out part
with a figure of the other.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError, first_few
from paca.workbench.base.files import write_json

INPUTS = ".inputs.json"
_TABLE_ROWS = 1000  # that are in memory at once


def digest_of_rows(rows: Iterable[Any]) -> dict[str, Any]:
    """Count values that JSON can write, or bytes, and digest them in their order."""
    digest, count = hashlib.blake2b(digest_size=16), 0
    for row in rows:
        count += 1
        content = row if isinstance(row, bytes) else json.dumps(row, sort_keys=True, default=repr).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return {"count": count, "digest": digest.hexdigest()}


def digest_of_tokens(data: Any) -> dict[str, Any]:
    """The same of the sequences in a `datasets.Dataset`, whose columns are lists of whole numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for table in data.with_format("arrow").iter(batch_size=_TABLE_ROWS):
        for name in sorted(table.column_names):
            lists = table[name].combine_chunks()
            digest.update(name.encode() + lists.value_lengths().to_numpy().tobytes())
            digest.update(lists.flatten().to_numpy(zero_copy_only=False).astype("int64").tobytes())
    return {"count": len(data), "digest": digest.hexdigest()}


def check_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Compare a run's inputs with those that it was started on; keep those that it has none of yet.

    Args:
        folder: The run's.
        inputs: What `digest_of_rows` and `digest_of_tokens` gave, or a list of names, each by what it is of.

    Raises:
        PacaError: If an input is another than the one that was kept by that name.
    """
    path = folder / INPUTS
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    differences = [_difference(name, kept[name], now) for name, now in inputs.items() if kept.get(name, now) != now]
    if differences:
        raise PacaError(
            f"The run in {str(folder)!r} was started on something else: {'; '.join(differences)}. Resume with what it "
            "was started on, or add --overwrite in place of --resume to start again."
        )
    if inputs.keys() - kept.keys():
        write_json(path, {**kept, **inputs})


def _difference(name: str, kept: Any, now: Any) -> str:
    if isinstance(now, list):
        gone, new = ([one for one in a if one not in b] for a, b in ((kept, now), (now, kept)))
        named = [
            f"{word} {first_few(list(map(repr, names)))}"
            for word, names in (("without", gone), ("with", new))
            if names
        ]
        return f"the {name} are others ({', '.join(named) or 'in another order'})"
    if kept["count"] != now["count"]:
        return f"the {name} were {kept['count']:,}, now {now['count']:,}"
    return f"the {name} are as many ({now['count']:,}), but not the same"
