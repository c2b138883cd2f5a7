"""How a judge is asked, and what becomes of a call that it refuses."""

import json

import pytest
from tests.workbench.evaluation.judge_server import Judge, serving

from paca import PacaError
from paca.workbench.evaluation.mt_bench.calls import (
    COMPLETION_TOKENS,
    NO_SYSTEM,
    NO_TEMPERATURE,
    Caller,
    CallError,
    RefusedError,
    Reply,
)
from paca.workbench.evaluation.mt_bench.endpoint import Endpoint

pytestmark = pytest.mark.road("refused-calls")


@pytest.fixture(scope="module")
def server():
    with serving(Judge()) as running:
        yield running


@pytest.fixture
def judge(server):
    server.answer, server.asked = (lambda _: "[[7]]"), []
    return server


def caller(judge, **changes):
    return Caller(Endpoint(judge.url, "j", **{"retries": 0, "max_tokens": 9, **changes}))


def wrong(message, **more):
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **more}})


def lacks(name):
    return lambda body: name not in body


def no_system(body):
    return all(message["role"] != "system" for message in body["messages"])


# What servers say to a call that their model does not take, how it is asked then, and what it takes.
WANTS = {
    "OpenAI, tokens": (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        COMPLETION_TOKENS,
        lacks("max_tokens"),
    ),
    "OpenAI, temperature": (
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.",
        NO_TEMPERATURE,
        lacks("temperature"),
    ),
    "deprecated": ("`temperature` is deprecated for this model.", NO_TEMPERATURE, lacks("temperature")),
    "bound": ("temperature may only be set to 1 when thinking is on", NO_TEMPERATURE, lacks("temperature")),
    "a gateway": ("Unknown argument: temperature", NO_TEMPERATURE, lacks("temperature")),
    "OpenAI, system": (
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        NO_SYSTEM,
        no_system,
    ),
    "a template": ("System role not supported", NO_SYSTEM, no_system),
}


@pytest.mark.parametrize("case", WANTS)
@pytest.mark.parametrize("status", [400, 422])
def test_a_judge_is_asked_as_it_wants_and_that_is_remembered(judge, case, status):
    message, way, takes = WANTS[case]
    judge.answer = lambda body: "[[7]]" if takes(body) else (status, wrong(message))
    asking = caller(judge)
    assert [asking.ask("S", "P"), asking.ask("S", "P")] == [Reply("[[7]]")] * 2
    assert asking.adaptations == {way}
    assert len(judge.asked) == 3
    last = judge.asked[-1]
    assert {9} == {last.get("max_tokens"), last.get("max_completion_tokens")} - {None}
    assert [part for part in ("S", "P") if part in last["messages"][-1]["content"]] == ["S", "P"][way != NO_SYSTEM :]


def test_a_judge_that_wants_everything_otherwise(judge):
    def answer(body):
        refused = [message for message, _, takes in WANTS.values() if not takes(body)]
        return (400, wrong(refused[0])) if refused else "[[7]]"

    judge.answer = answer
    asking = caller(judge)
    assert asking.ask("S", "P") == Reply("[[7]]")
    assert asking.adaptations == {COMPLETION_TOKENS, NO_TEMPERATURE, NO_SYSTEM}


def test_a_judge_that_takes_the_usual_is_asked_in_the_usual_way(judge):
    caller(judge).ask("S", "P")
    (body,) = judge.asked
    assert body["max_tokens"] == 9
    assert body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


# Words of an adaptation in a refusal that no adaptation helps.
REFUSED = {
    "too long": (400, "'max_tokens' or 'max_completion_tokens' is too large: 9. The context is 4096 tokens."),
    "a filter": (400, "The response was filtered. The prompt: what is the temperature of the sun in a solar system?"),
    "moderation": (403, "Your input was flagged"),
    "a body too large": (413, "Request Entity Too Large"),
    "no such model": (404, "The model 'j' does not exist"),
    "another form": (422, "Field required"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_of_that_call(judge, case):
    status, message = REFUSED[case]
    judge.answer = lambda _: (status, wrong(message))
    asking = caller(judge, retries=2)
    with pytest.raises(RefusedError, match=f"{status}"):
        asking.ask("S", "P")
    assert len(judge.asked) == 1
    assert not asking.adaptations


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_no_refusal(judge, status):
    judge.answer = lambda _: (status, "later")
    with pytest.raises(CallError):
        caller(judge).ask("S", "P")


@pytest.mark.parametrize("status", [401, 402])
def test_a_refused_key_ends_everything(judge, status):
    judge.answer = lambda _: (status, wrong("no credit"))
    with pytest.raises(PacaError, match=rf"refuses the key \({status}\); set the .*OPENAI_API_KEY.*no credit"):
        caller(judge).ask("S", "P")


def test_a_stop_is_told_from_an_end(judge):
    judge.answer = lambda _: {"content": "half [[3]]", "finish_reason": "length"}
    assert caller(judge).ask("S", "P") == Reply("half [[3]]", cut=True)
    judge.answer = lambda _: {"content": None, "finish_reason": "length"}
    assert caller(judge).ask("S", "P") == Reply("", cut=True)


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "half [[3]]", "finish_reason": "content_filter"},
        {"content": None, "refusal": "I can't help with that"},
    ],
)
def test_a_filter_may_answer_too(judge, answer):
    judge.answer = lambda _: dict(answer)
    with pytest.raises(RefusedError, match="stopped by the content filter"):
        caller(judge).ask("S", "P")
