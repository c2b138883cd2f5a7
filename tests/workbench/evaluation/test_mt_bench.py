"""MT-Bench from questions to scores: what the judge is asked, retries, malformed verdicts, and going on."""

import json

import pytest
from tests.workbench.evaluation.judge_server import Judge, serving

from paca.workbench.cli.main import main
from paca.workbench.evaluation.mt_bench import answers as answering
from paca.workbench.evaluation.mt_bench.judge import FIRST_CALLS
from paca.workbench.models.generation import Sampling

NEW_TOKENS = "6"


@pytest.fixture
def judge():
    with serving(Judge()) as running:
        yield running


def run(adapter, bench, out, *more):
    words = ["--tasks", "mt-bench", "--mt-bench", str(bench), "--output", str(out), "--max-new-tokens", NEW_TOKENS]
    return main(["eval", adapter, *words, *more])


def judged_by(judge, *more):
    return ["--judge-url", judge.url, "--judge-model", "a judge/1", *more]


def scored(out):
    (file,) = out.glob("mt-bench/judge-*/result.json")
    return json.loads(file.read_text())


def test_from_questions_to_scores_by_category(adapter, bench, tmp_path, judge, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    ratings = {"one": 8, "two": 6.5, "math": 3, "math two": 2}
    judge.answer = lambda body: f"Fine.\nRating: [[{ratings[body['messages'][1]['content'].partition(':')[0]]}]]"
    out = tmp_path / "out"
    assert run(adapter, bench, out, *judged_by(judge, "--judge-key-variable", "JUDGE_KEY")) == 0
    result = scored(out)
    assert result["categories"]["writing"]["score"] == 7.25
    assert result["categories"]["reasoning"]["turn_2"] == 2
    assert result["average"] == {
        "score": 34 / 6,
        "turn_1": 19 / 3,
        "turn_2": 5,
        "verdicts": 6,
        "malformed": 0,
        "refused": 0,
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"mt-bench answers: {out}/mt-bench/result.json", "3 questions of two turns answered"]
    assert [line.split() for line in lines[3:]] == [
        ["category", "score", "turn", "1", "turn", "2", "verdicts", "malformed"],
        ["writing", "7.2500", "8.0000", "6.5000", "4", "0"],
        ["reasoning", "2.5000", "3.0000", "2.0000", "2", "0"],
        ["average", "5.6667", "6.3333", "5.0000", "6", "0"],
    ]
    assert set(judge.keys) == {"Bearer secret-1"}
    assert not [path for path in out.rglob("*") if path.is_file() and b"secret-1" in path.read_bytes()]


def test_what_the_judge_is_asked(adapter, bench, tmp_path, judge):
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 0
    lines = (tmp_path / "out" / "mt-bench" / "answers.jsonl").read_text().splitlines()
    answers = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}
    asked = [body["messages"][1]["content"] for body in judge.asked]
    first, second = answers["81"]
    assert asked[0] == f"one: The cat jumps. / {first} [[rating]]"
    # What a question or an answer holds in braces is not a place.
    assert asked[1] == f"two: The cat jumps. / {first} / The dog walks {{answer}}. / {second}"
    first, second = answers["101"]
    assert asked[4] == f"math: Who jumps? / The cat. / {first} [[rating]]"
    assert asked[5] == f"math two: Who jumps? The cat. Who walks? The dog. {first} {second}"
    assert [body["messages"][0]["content"] for body in judge.asked[:2]] == ["S", "M"]
    assert {(body["model"], body["temperature"]) for body in judge.asked} == {("a judge/1", 0)}


def test_the_second_turn_sees_the_first_and_the_temperature_is_the_category_s(adapter, bench, tmp_path, monkeypatch):
    seen = []

    def generate(model, tokenizer, inputs, sampling):
        seen.append((tokenizer.decode(inputs["input_ids"][0]), sampling))
        return " said ", False

    monkeypatch.setattr(answering, "generate", generate)
    assert run(adapter, bench, tmp_path / "out", "--limit", "1") == 0
    assert "<|im_start|>assistant\nsaid<|im_end|>" in seen[1][0]
    assert [sampling for _, sampling in seen] == [Sampling(0.7, 1.0, 6)] * 2 + [Sampling(0.0, 1.0, 6)] * 2


def test_failed_calls_are_made_again(adapter, bench, tmp_path, judge, capsys):
    failures = iter([(503, "busy"), (429, "slow down")])
    judge.answer = lambda _: next(failures, "[[5]]")
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 0
    assert len(judge.asked) == 6 + 2
    assert scored(tmp_path / "out")["average"]["score"] == 5


def test_a_judge_that_is_down_keeps_what_there_is_and_the_next_command_goes_on(
    adapter, bench, tmp_path, judge, capsys, monkeypatch
):
    verdicts = iter(["[[4]]", "[[5]]"])
    judge.answer = lambda _: next(verdicts, (500, "broken"))
    out = tmp_path / "out"
    assert run(adapter, bench, out, *judged_by(judge, "--judge-retries", "1")) == 2
    error = capsys.readouterr().err
    assert "gave no answer to 3 of 6 questions, each asked 2 times (InternalServerError" in error
    assert "The other verdicts are kept: repeat the command to continue." in error
    assert not list(out.glob("mt-bench/judge-*/result.json"))
    judge.answer, judge.asked = lambda _: "[[6]]", []
    monkeypatch.setattr(answering, "generate", None)  # the answers are there
    assert run(adapter, bench, out, *judged_by(judge)) == 0
    assert len(judge.asked) == 4
    assert scored(out)["average"]["score"] == (4 + 5 + 4 * 6) / 6
    judge.asked = []
    assert run(adapter, bench, out, *judged_by(judge)) == 0
    assert judge.asked == []


@pytest.mark.road("verdicts")
def test_malformed_verdicts_are_counted_and_shown_with_what_they_lack(adapter, bench, tmp_path, judge, capsys):
    said = iter(["no rating", "[[11]]", "", "<think>[[5]]", "Rating: [9]", "[[1]] no, [[8]]"])
    judge.answer = lambda _: next(said)
    out = tmp_path / "out"
    assert run(adapter, bench, out, *judged_by(judge)) == 0
    average = {"score": 8.5, "turn_1": 9, "turn_2": 8, "verdicts": 6, "malformed": 4, "refused": 0}
    assert scored(out)["average"] == average
    assert scored(out)["categories"]["writing"]["score"] is None
    counted = "1 a rating outside 1 to 10, 1 a thought without an end, 1 no rating, 1 no text"
    shown = capsys.readouterr().out
    assert f"4 malformed verdicts count in no mean; their texts are kept: {counted}\n" in shown
    (kept,) = out.glob("mt-bench/judge-*/verdicts.jsonl")
    assert "no rating" in kept.read_text()


@pytest.mark.road("verdicts")
def test_a_verdict_that_is_cut_says_which_option_to_raise_and_is_asked_for_again(
    adapter, bench, tmp_path, judge, capsys, monkeypatch
):
    def answer(body):
        long = body["messages"][1]["content"].startswith("math") and body["max_tokens"] < 3000
        return {"content": "By the rubric, [[2]] would", "finish_reason": "length"} if long else "[[7]]"

    judge.answer, out = answer, tmp_path / "out"
    assert run(adapter, bench, out, *judged_by(judge)) == 0
    assert scored(out)["average"]["malformed"] == 2
    assert scored(out)["average"]["score"] == 7
    shown = capsys.readouterr().out
    assert "their texts are kept: 2 cut at the token limit" in shown
    assert "verdicts were cut at 2048 tokens: raise --judge-max-tokens and repeat the command" in shown
    monkeypatch.setattr(answering, "generate", None)  # the answers are there
    for tokens, calls in (("2000", 0), ("2500", 2), ("4000", 2), ("4000", 0)):
        judge.asked = []
        assert run(adapter, bench, out, *judged_by(judge, "--judge-max-tokens", tokens)) == 0
        assert len(judge.asked) == calls
    assert scored(out)["average"]["malformed"] == 0
    assert scored(out)["cut_at"] is None


@pytest.mark.road("refused-calls")
@pytest.mark.parametrize("parallel", ["1", "4"])
@pytest.mark.parametrize("refused", ["one", "math two", "math"])
def test_a_refused_call_is_that_question_s_failure(adapter, bench, tmp_path, judge, capsys, refused, parallel):
    def answer(body):
        unwanted = body["messages"][1]["content"].startswith(f"{refused}:")
        return (400, json.dumps({"error": {"message": "filtered", "code": "content_filter"}})) if unwanted else "[[6]]"

    judge.answer, out = answer, tmp_path / "out"
    assert run(adapter, bench, out, *judged_by(judge, "--judge-parallel", parallel)) == 0
    number = {"one": 2, "math two": 1, "math": 1}[refused]
    average = scored(out)["average"]
    assert (average["score"], average["verdicts"], average["refused"]) == (6, 6 - number, number)
    assert len(judge.asked) == 6
    shown = capsys.readouterr().out
    assert f"{number} calls were refused and count in no mean: question " in shown
    assert "filtered" in shown
    keys = {"one": {"81:1", "82:1"}, "math two": {"101:2"}, "math": {"101:1"}}[refused]
    assert set(scored(out)["refused"]) == keys


@pytest.mark.road("refused-calls")
@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_where_the_first_calls_are_all_refused_it_is_the_address(adapter, bench, tmp_path, judge, capsys, status):
    judge.answer = lambda _: (status, "no")
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 2
    error = capsys.readouterr().err
    assert f"refused all of the first {FIRST_CALLS} calls" in error
    assert "Is 'a judge/1' its --judge-model, does the address end in /v1, and may the key in OPENAI_API_KEY" in error
    assert FIRST_CALLS <= len(judge.asked) <= FIRST_CALLS + 1
    assert not list((tmp_path / "out").glob("mt-bench/judge-*/result.json"))
    judge.answer = lambda _: "[[5]]"
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 0
    assert scored(tmp_path / "out")["average"]["score"] == 5


@pytest.mark.road("refused-calls")
def test_a_resumed_run_may_have_refused_calls_alone(adapter, bench, tmp_path, judge, capsys):
    out = tmp_path / "out"
    verdicts = iter(["[[4]]"] * 4 + [(400, "filtered"), (503, "busy")])
    judge.answer = lambda _: next(verdicts)
    assert run(adapter, bench, out, *judged_by(judge, "--judge-retries", "0")) == 2
    judge.answer = lambda _: (400, "filtered")
    assert run(adapter, bench, out, *judged_by(judge)) == 0
    assert scored(out)["average"]["refused"] == 2


@pytest.mark.road("refused-calls")
def test_a_judge_that_answered_before_and_refuses_everything_now_is_not_taken_at_its_word(
    adapter, bench, tmp_path, judge, capsys
):
    out = tmp_path / "out"
    verdicts = iter(["[[4]]"])
    judge.answer = lambda _: next(verdicts, (503, "busy"))
    assert run(adapter, bench, out, *judged_by(judge, "--judge-retries", "0")) == 2
    judge.answer = lambda _: (400, "no")
    assert run(adapter, bench, out, *judged_by(judge)) == 2
    assert "refused all of the first 5 calls" in capsys.readouterr().err
    assert not list(out.glob("mt-bench/judge-*/result.json"))


@pytest.mark.road("refused-calls")
def test_a_judge_that_wants_to_be_asked_otherwise_says_so_in_the_result(adapter, bench, tmp_path, judge, capsys):
    message = "Unsupported value: 'temperature' does not support 0 with this model."
    judge.answer = lambda body: (
        (400, json.dumps({"error": {"message": message}})) if "temperature" in body else "[[9]]"
    )
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 0
    assert scored(tmp_path / "out")["average"]["score"] == 9
    assert scored(tmp_path / "out")["asked_with"] == ["no temperature"]
    assert "this judge wants no temperature" in capsys.readouterr().out


def test_two_judges_share_the_answers(adapter, bench, tmp_path, judge):
    out = tmp_path / "out"
    assert run(adapter, bench, out, *judged_by(judge)) == 0
    assert run(adapter, bench, out, "--judge-url", judge.url, "--judge-model", "../../b", "--judge-parallel", "3") == 0
    assert len(list((out / "mt-bench").glob("judge-*"))) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_an_answer_does_not_depend_on_what_was_answered_before(adapter, bench, tmp_path):
    assert run(adapter, bench, tmp_path / "whole") == 0
    whole = (tmp_path / "whole" / "mt-bench" / "answers.jsonl").read_text()
    assert run(adapter, bench, tmp_path / "cut") == 0
    cut = tmp_path / "cut" / "mt-bench" / "answers.jsonl"
    (cut.parent / "result.json").unlink()
    cut.write_text(whole[: whole.index("\n") + 20])  # as a kill in mid-line leaves it
    assert run(adapter, bench, tmp_path / "cut") == 0
    assert cut.read_text() == whole
    assert run(adapter, bench, tmp_path / "other", "--seed", "7") == 0
    assert (tmp_path / "other" / "mt-bench" / "answers.jsonl").read_text() != whole


def test_a_conversation_that_is_too_long_has_no_answer_and_is_counted(adapter, bench, tmp_path, judge, capsys):
    rows = [json.loads(line) for line in (bench / "question.jsonl").read_text().splitlines()]
    rows[0]["turns"][1] = "cat " * 5000
    (bench / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 0
    assert "1 turns have no answer: the model could read no more" in capsys.readouterr().out


def test_a_refused_key_ends_at_once(adapter, bench, tmp_path, judge, capsys):
    judge.answer = lambda _: (401, "no")
    assert run(adapter, bench, tmp_path / "out", *judged_by(judge)) == 2
    assert "refuses the key (401); set the environment variable OPENAI_API_KEY." in capsys.readouterr().err
    assert len(judge.asked) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--judge-url", "localhost:8000", "--judge-model", "x"],
            "expected an address such as http://localhost:8000/v1",
        ),
        (["--judge-url", "http://u:k@h/v1", "--judge-model", "x"], "--judge-url holds a key or a query"),
        (["--judge-url", "http://h/v1"], "--judge-url and --judge-model go together"),
    ],
)
def test_an_address_that_is_none(adapter, bench, tmp_path, capsys, options, message):
    assert run(adapter, bench, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
