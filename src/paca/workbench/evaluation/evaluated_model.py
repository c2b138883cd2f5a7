"""The model that is evaluated: what tells it from any other, and itself once it is needed."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from paca.workbench.models.adapter_files import CONFIG, WEIGHTS
from paca.workbench.models.load import merged_model
from paca.workbench.training.adapted import SharedBase, find_source, load_adapted


class EvaluatedModel:
    """A model or an adapter that is evaluated. It is loaded when it is first asked for.

    Args:
        name: A run's output folder, an adapter's folder, a model's folder, an embedded model, or a name on the Hub.
        dtype: The precision to hold it in; as in the run when omitted.
        merged: Merge the adapter into the weights first, as the paper does before it scores.
        bases: Loads models that are evaluated one after another.
    """

    def __init__(
        self, name: str, dtype: str | None = None, merged: bool = False, bases: SharedBase | None = None
    ) -> None:
        self.name = name
        self.source = find_source(name)
        self._bases = bases or SharedBase()
        self.dtype = dtype or self.source.dtype
        self.merged = merged and self.source.adapter is not None

    def identity(self) -> dict[str, Any]:
        """Identify the model, so that results of another are never taken for its own.

        Has the base model, the adapter's digest, precision, quantization, and whether it is merged.
        """
        adapter = self.source.adapter
        return {
            "base": self.source.base,
            "base_files": _stamps(Path(self.source.base)),
            "adapter": None if adapter is None else file_digest(adapter / CONFIG, adapter / WEIGHTS),
            "dtype": self.dtype,
            "quantization": self.source.quantization,
            "merged": self.merged,
        }

    def default_folder(self) -> Path:
        """Where results go when nothing is said: beside the adapter, or below `outputs/`."""
        if self.source.adapter is not None:
            return self.source.adapter.resolve().parent / "eval"
        return Path("outputs") / "eval" / slug(self.source.base)

    def load(self) -> None:
        """Load the model now, if it was not asked for before."""
        self._loaded  # noqa: B018 - a cached property

    @property
    def model(self) -> Any:
        """The model, in evaluation mode."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        if not self.merged:
            return self._bases.load(self.source, self.dtype)
        model, tokenizer = load_adapted(self.source, self.dtype)
        return merged_model(model).eval(), tokenizer

    def release(self) -> None:
        """Let go of the model, which is loaded again if it is asked for once more."""
        self.__dict__.pop("_loaded", None)


def slug(name: str) -> str:
    """Turn a name such as `org/model:7b` into one that is safe for a file.

    It has letters, digits, `-`, `_` and `.`, the last not in front; a digest is added where something was replaced.
    """
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    plain = plain.strip(".-")[:60]
    return plain if plain and plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def file_digest(*paths: Path) -> str:
    """Digest the bytes of files, one after another, to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _stamps(folder: Path) -> dict[str, list[int]] | None:
    """Size and time of a local model's weight files: a digest of them would take as long as an evaluation."""
    if not folder.is_dir():
        return None
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")])
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
