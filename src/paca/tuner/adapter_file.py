"""What this package does to an adapter's weights file after PEFT has written it, and before PEFT reads it.

Fingerprints travel in the file's metadata, not among its tensors: a state dict holds what a file holds, and whatever
loads either would report entries that no layer has as unexpected.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import PacaError

FINGERPRINT = "paca_fingerprint"
FINGERPRINT_OF_QUANTIZED = "paca_fingerprint_quantized"


class LayerFingerprint(NamedTuple):
    """What is written about one layer: under which name, of which connections, and the numbers."""

    kind: str
    indices: Tensor
    numbers: Tensor


def finish_file(path: str, mode: int, fingerprints: Mapping[str, LayerFingerprint]) -> None:
    """Write fingerprints into a file's metadata; have the file as readable as `mode` says.

    safetensors lets nobody but the owner read what it writes, whatever the umask says.

    Args:
        path: A safetensors file; nothing is done where there is none.
        mode: Permissions.
        fingerprints: By layer; those of other connections than the file has belong to another file.
    """
    if not os.path.isfile(path):
        return
    with safe_open(path, framework="pt") as file:
        indices = {key: file.get_tensor(key) for key in file.keys() if key.endswith(".paca_indices")}  # noqa: SIM118 - no dict
    own = {
        f"{name}.{kind}": numbers.tolist()
        for name, (kind, chosen, numbers) in fingerprints.items()
        if (key := f"{name}.paca_indices") in indices and torch.equal(indices[key], chosen)
    }
    if own:
        temporary = f"{path}.tmp"  # whoever is interrupted leaves the file as PEFT wrote it
        with open(path, "rb") as written, open(temporary, "wb") as file:
            file.write(_header_with(written, json.dumps(own)))
            shutil.copyfileobj(written, file)
        os.replace(temporary, path)
    os.chmod(path, mode & 0o666)


def _header_with(file: BinaryIO, fingerprints: str) -> bytes:
    """The header of a safetensors file, which is read to its end, with more metadata.

    safetensors itself writes several entries in any order, and two runs that are alike have to write the same bytes.
    """
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.setdefault("__metadata__", {})[FINGERPRINT] = fingerprints
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def weights_file(source: str, subfolder: str | None = None, options: Mapping[str, Any] | None = None) -> str:
    """The path of a saved adapter's weights, which PEFT would load; of one on the Hub it is in the cache then.

    Args:
        source: A folder, or the name of a repository on the Hub.
        subfolder: Folder within it.
        options: Of PEFT's `from_pretrained`; those that say how to download count.

    Returns:
        The path, whether or not there is such a file.
    """
    path = os.path.join(source, subfolder or "", SAFETENSORS_WEIGHTS_NAME)
    if os.path.isdir(source):
        return path
    known = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    chosen = {name: value for name, value in (options or {}).items() if name in known and value is not None}
    try:
        return hf_hub_download(source, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **chosen)
    except (OSError, ValueError):  # PEFT says what is wrong with the name, or finds a pickle
        return path


def read_fingerprints(path: str) -> dict[str, Tensor]:
    """The fingerprints in a file's metadata, by the names that they would have as tensors.

    Args:
        path: A safetensors file; one that is not there has none.

    Returns:
        Shape `(8,)` each.

    Raises:
        PacaError: If the file is truncated or is no safetensors file.
    """
    if not os.path.isfile(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PacaError(
            f"{path} ({os.path.getsize(path):,} bytes) is no whole safetensors file: {error}. It was cut short or "
            "damaged; copy, download or save the adapter again."
        ) from error
    try:
        saved = json.loads(metadata.get(FINGERPRINT, "{}"))
        return {key: torch.tensor(values, dtype=torch.float32) for key, values in saved.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise PacaError(
            f"The metadata {FINGERPRINT!r} of {path} can't be read: {error}. Save the adapter again."
        ) from error
