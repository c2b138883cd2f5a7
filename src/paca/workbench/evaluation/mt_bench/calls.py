"""Calls of a judge, made as its model wants them, and told apart by whether another could succeed."""

import re
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.evaluation.mt_bench.endpoint import Endpoint

_KEY_REFUSED = (401, 402)
_PASSING = (408, 409, 425, 429)  # too slow, too early, too often
_MOST_READ = 1000  # characters of a refusal: behind them some quote the whole call

# How some models want to be asked, and what they say to who asks in the usual way.
COMPLETION_TOKENS = "max_completion_tokens in place of max_tokens"
NO_TEMPERATURE = "no temperature"
NO_SYSTEM = "the system message as part of the user's"
_REFUSALS = {
    COMPLETION_TOKENS: re.compile(
        r"use ['\"`]?max_completion_tokens|max_completion_tokens['\"`]? instead|"
        r"max_tokens['\"`]? (?:is )?not supported|unsupported parameter: ['\"`]?max_tokens"
    ),
    NO_TEMPERATURE: re.compile(
        r"temperature\W.{0,60}(?:support|only|deprecat|allow|must)|"
        r"(?:unsupported|unknown|unrecognized|unexpected|invalid).{0,40}temperature"
    ),
    NO_SYSTEM: re.compile(
        r"system['\"` ]{1,2}(?:role|message|prompt|instruction)s?\b.{0,60}(?:not\b|n't|unsupported)|"
        r"not support 'system'"
    ),
}


class CallError(Exception):
    """A call that failed for a reason that may pass: the same call may succeed later."""


class RefusedError(Exception):
    """A call that the endpoint refuses for what it holds: another may succeed, the same one never will."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Args:
        text: Empty where the judge wrote none.
        cut: Whether it was stopped at the token limit.
    """

    text: str
    cut: bool = False


class Caller:
    """Asks an endpoint, and learns from its first refusals how its model wants to be asked.

    Several threads may use one.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.adaptations: set[str] = set()
        self._key_refused: PacaError | None = None  # then nothing is asked any more, also by calls that wait already
        self._client = endpoint.client()

    def ask(self, system: str, prompt: str) -> Reply:
        """Ask for one verdict.

        A RefusedError if this call can't succeed, a CallError if there was no answer after all retries, a PacaError if
        no call can succeed because the key is refused.
        """
        import openai

        while True:
            if self._key_refused is not None:
                raise self._key_refused
            adaptations = frozenset(self.adaptations)
            try:
                request = _request(self.endpoint, adaptations, system, prompt)
                return _read(self._client.chat.completions.create(**request))
            except openai.APIStatusError as error:
                wanted = _wanted(error) - adaptations
                if not wanted:
                    raise self._failure(error) from error
                self.adaptations |= wanted
            except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
                raise CallError(_short(error)) from error  # the last four: an answer of another form

    def _failure(self, error: Any) -> Exception:
        status = error.status_code
        if status in _KEY_REFUSED:
            self._key_refused = PacaError(
                f"The judge at {self.endpoint.url} refuses the key ({status}); set the environment variable "
                f"{self.endpoint.key_variable}. It says: {_short(error)}"
            )
            return self._key_refused
        passing = status >= 500 or status in _PASSING
        return CallError(_short(error)) if passing else RefusedError(_short(error))


def _wanted(error: Any) -> set[str]:
    """What to change so that a model takes the call that it refused; nothing where that is not why."""
    if error.status_code not in (400, 422):
        return set()
    text = " ".join(str(error).lower().split())[:_MOST_READ]
    return {way for way, refusal in _REFUSALS.items() if refusal.search(text)}


def _request(endpoint: Endpoint, adaptations: frozenset[str], system: str, prompt: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    if NO_SYSTEM in adaptations:
        messages = [{"role": "user", "content": f"{system}\n\n{prompt}"}]
    limit = "max_completion_tokens" if COMPLETION_TOKENS in adaptations else "max_tokens"
    temperature = {} if NO_TEMPERATURE in adaptations else {"temperature": 0}
    return {"model": endpoint.model, "messages": messages, limit: endpoint.max_tokens, **temperature}


def _read(answer: Any) -> Reply:
    """Take the text off an answer; a content filter may also stop or replace it with a status of 200."""
    choice = answer.choices[0]
    text = choice.message.content or ""
    refusal = getattr(choice.message, "refusal", None)
    if choice.finish_reason == "content_filter" or (refusal and not text):
        raise RefusedError(f"stopped by the content filter{f': {refusal}' if refusal else ''}")
    return Reply(text, choice.finish_reason == "length")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
