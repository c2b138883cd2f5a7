"""What this package does to an adapter's weights file after PEFT has written it, and before PEFT reads it.

Fingerprints travel in the file's metadata: as tensors they would be reported as unexpected by everything but PEFT that
loads the file.
"""

from __future__ import annotations

import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import PacaError

FINGERPRINT = "paca_fingerprint"
FINGERPRINT_OF_QUANTIZED = "paca_fingerprint_quantized"


def is_fingerprint(key: str) -> bool:
    """Whether a tensor of an adapter's file is a layer's fingerprint."""
    return key.endswith((f".{FINGERPRINT}", f".{FINGERPRINT_OF_QUANTIZED}"))


def finish_file(path: str, mode: int) -> None:
    """Move fingerprints from a file's tensors into its metadata; have the file as readable as `mode` says.

    safetensors lets nobody but the owner read what it writes, whatever the umask says.

    Args:
        path: A safetensors file; nothing is done where there is none.
        mode: Permissions.
    """
    if not os.path.isfile(path):
        return
    state = load_file(path)
    own = {key: state.pop(key).tolist() for key in list(state) if is_fingerprint(key)}
    if own:
        temporary = f"{path}.tmp"  # whoever is interrupted leaves the file as PEFT wrote it
        with open(temporary, "wb") as file:
            file.writelines(_with_metadata(save(state, metadata={"format": "pt"}), json.dumps(own)))
        os.replace(temporary, path)
    os.chmod(path, mode & 0o666)


def _with_metadata(content: bytes, fingerprints: str) -> tuple[bytes, bytes, memoryview]:
    """Add to the metadata of a safetensors file: the length of its header, the header, and the tensors as they were.

    safetensors writes several entries in any order, and two runs that are alike have to write the same bytes.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"][FINGERPRINT] = fingerprints
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little"), text, memoryview(content)[start:]


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
