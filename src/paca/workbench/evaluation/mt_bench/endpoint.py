"""An OpenAI-compatible endpoint that is asked for verdicts; calls that fail are made again, later and later."""

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


class CallError(Exception):
    """A call that failed for a reason that may pass: the others may still succeed."""


def ask(client: Any, endpoint: Endpoint, system: str, prompt: str) -> str:
    """Ask for one verdict and return its text, empty where the judge sent none.

    Several threads may use one `client`. A CallError if there was no answer after all retries; a PacaError if no call
    can succeed: a key is refused, or there is no such model.
    """
    import openai

    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    try:
        answer = client.chat.completions.create(
            model=endpoint.model, messages=messages, temperature=0, max_tokens=endpoint.max_tokens
        )
        return answer.choices[0].message.content or ""
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise PacaError(
            f"The judge at {endpoint.url} refuses the key ({error.status_code}); set the environment variable "
            f"{endpoint.key_variable}."
        ) from error
    except (openai.NotFoundError, openai.BadRequestError, openai.UnprocessableEntityError) as error:
        raise PacaError(
            f"The judge at {endpoint.url} can't be asked ({error.status_code}): {_short(error)}. Is "
            f"{endpoint.model!r} its --judge-model, and does the address end in /v1?"
        ) from error
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:  # or an answer of no form
        raise CallError(_short(error)) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
