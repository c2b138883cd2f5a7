"""Where a judge is: an OpenAI-compatible endpoint; calls that fail are made again, later and later."""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from paca.errors import PacaError


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is, and who it is.

    Args:
        url: Up to `/v1`, such as `http://localhost:8000/v1`.
        model: The judge's name there.
        key_variable: The environment variable that holds the key. No key is asked for where it is not set.
        retries: How often a call that failed for a passing reason is made again.
        max_tokens: The longest verdict.
        timeout: Seconds to wait for an answer.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    retries: int = 6
    max_tokens: int = 2048
    timeout: float = 120.0

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise PacaError(f"--judge-url {self.url!r}: expected an address such as http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise PacaError(
                f"--judge-url holds a key or a query; name the key's environment variable with --judge-key-variable "
                f"({self.key_variable} when omitted)."
            )

    def client(self) -> Any:
        """Return an `openai.OpenAI` for this endpoint, which waits longer before each further call."""
        import openai

        return openai.OpenAI(
            base_url=self.url.rstrip("/").removesuffix("/chat/completions"),
            api_key=os.environ.get(self.key_variable) or "none",
            max_retries=self.retries,
            timeout=self.timeout,
        )
