"""Whether a word names a model or an adapter that is there; nothing is loaded, and the Hub is not asked."""

from pathlib import Path

from paca.workbench.models.adapter_files import adapter_folder
from paca.workbench.models.embedded import EMBEDDED


def names_model(word: str) -> bool:
    """Whether it is a run's output folder, an adapter's or a model's folder, or the name of an embedded model."""
    folder = Path(word).expanduser()
    return word in EMBEDDED or adapter_folder(folder) is not None or (folder / "config.json").is_file()
