"""lm-evaluation-harness's wrapper of a transformers model, with a memory that outlives the process.

The harness has a cache of its own, in SQLite with pickled values; loading one that somebody else made runs what is in
it. This one is a journal of JSON lines.
"""

import hashlib
import json
from typing import Any

from lm_eval.models.huggingface import HFLM

from paca.workbench.evaluation.journal import Journal


class RememberingLM(HFLM):
    """Answers each request once, also over several processes that follow one another.

    Args:
        journal: Holds the answers.
        **options: Those of `HFLM`.
    """

    def __init__(self, journal: Journal, **options: Any) -> None:
        super().__init__(**options)
        self._journal = journal
        self.cache_hook = self  # the harness calls `add_partial` as soon as an answer is there

    def add_partial(self, kind: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """Keep an answer to a request."""
        if not _is_drawn(kind, arguments):
            self._journal.add(_key(kind, arguments), answer)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness's, for requests that were not answered before."""
        answers = self._remembered("loglikelihood", requests, super().loglikelihood, disable_tqdm)
        return [(answer[0], answer[1]) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As the harness's, for requests that were not answered before."""
        return self._remembered("loglikelihood_rolling", requests, super().loglikelihood_rolling, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As the harness's, for requests that were not answered before."""
        return self._remembered("generate_until", requests, super().generate_until, disable_tqdm)

    def _remembered(self, kind: str, requests: list[Any], answer: Any, disable_tqdm: bool) -> list[Any]:
        keys = [None if _is_drawn(kind, request.args) else _key(kind, request.args) for request in requests]
        asked = [key is None or key not in self._journal for key in keys]
        waiting = [request for request, is_asked in zip(requests, asked, strict=True) if is_asked]
        fresh = iter(answer(waiting, disable_tqdm=disable_tqdm) if waiting else [])
        return [
            next(fresh) if is_asked or key is None else self._journal[key]
            for key, is_asked in zip(keys, asked, strict=True)
        ]


def _key(kind: str, arguments: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps([kind, *arguments], sort_keys=True).encode()).hexdigest()[:32]


def _is_drawn(kind: str, arguments: tuple[Any, ...]) -> bool:
    """Whether each repetition of the request is to have an answer of its own."""
    return kind == "generate_until" and bool(arguments[1].get("do_sample", False))
