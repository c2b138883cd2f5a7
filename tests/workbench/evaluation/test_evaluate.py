"""Perplexity, a user's own task files, and what is refused."""

import json
import math

import pytest
import torch
from tests.workbench.tiny import SENTENCES, run, write_jsonl, write_recipe

from paca.workbench.cli.main import main
from paca.workbench.evaluation import harness_model
from paca.workbench.evaluation.evaluated_model import EvaluatedModel, slug

TASK = """\
task: finish
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def own_task(tmp_path):
    rows = [{"text": f"{number} {text[:12]}", "answer": text[12:]} for number, text in enumerate(SENTENCES[:5])]
    place = tmp_path / "tasks"
    place.mkdir()
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    (place / "finish.yaml").write_text(TASK.format(data=data, cache=tmp_path / "cache"))
    return place


def test_perplexity_is_what_finetune_measured(folder, tmp_path, content, capsys):
    content["data"] = {"train": content["data"]["train"], "eval": content["data"]["train"]}
    metrics = run(content, tmp_path)
    capsys.readouterr()
    for options in ([], ["--batch-size", "7"]):
        out = ["--output", str(tmp_path / f"out{len(options)}")]
        words = ["eval", str(tmp_path / "run"), "--tasks", "perplexity", "--text", content["data"]["eval"]]
        assert main([*words, "--length", "16", "--json", *options, *out]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["tokens"] == metrics["after"]["tokens"]
        assert found["perplexity"] == pytest.approx(metrics["after"]["perplexity"], rel=1e-5)
        assert found["perplexity"] != pytest.approx(metrics["before"]["perplexity"], rel=1e-3)


def test_perplexity_of_conversations_counts_the_assistants_tokens(adapter, tmp_path, capsys):
    turns = [{"role": "user", "content": "The cat jumps."}, {"role": "assistant", "content": "The dog walks."}]
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}] * 2)
    words = ["--tasks", "perplexity", "--text", str(data), "--output", str(tmp_path / "out"), "--json"]
    assert main(["eval", adapter, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    evaluated = EvaluatedModel(adapter)
    prompt = evaluated.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    whole = evaluated.tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")["input_ids"]
    learned = range(len(prompt), whole.shape[1] - 1)  # up to the end mark, without the line feed behind it
    with torch.no_grad():
        scores = evaluated.model(input_ids=whole).logits[0].log_softmax(-1)
    loss = -sum(float(scores[i - 1, whole[0, i]]) for i in learned) / len(learned)
    assert found["tokens"] == 2 * len(learned)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.road("comparisons")
@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_perplexity_is_measured_on_as_many_sequences_as_were_asked_for(adapter, tmp_path, batch_size, capsys):
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "The cat", "completion": text} for text in SENTENCES[:7]])
    first = write_jsonl(tmp_path / "first.jsonl", [json.loads(row) for row in data.read_text().splitlines()[:3]])
    found = {}
    for name, source, limit in (("all", data, []), ("limited", data, ["--limit", "3"]), ("first", first, [])):
        words = ["--tasks", "perplexity", "--text", str(source), "--output", str(tmp_path / name), *limit]
        assert main(["eval", adapter, *words, "--batch-size", batch_size]) == 0
        found[name] = json.loads((tmp_path / name / "perplexity" / "result.json").read_text())
        shown = capsys.readouterr().out
        assert ("in 3 of 7 sequences)" in shown) == (name == "limited")
    assert found["limited"]["loss"] == found["first"]["loss"] != found["all"]["loss"]
    assert found["limited"]["tokens"] == found["first"]["tokens"] < found["all"]["tokens"]
    assert (found["limited"]["sequences"], found["limited"]["all_sequences"]) == (3, 7)


def test_a_task_file_of_the_user_s_own_goes_on_where_it_was(adapter, own_task, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["--tasks", "finish", "--include", str(own_task), "--trust-task-files", "--output", str(out), "--json"]
    assert main(["eval", adapter, *words]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["tasks"]["finish"]["questions"] == 5
    assert "exact_match" in whole["tasks"]["finish"]["metrics"]
    answers = out / "finish" / "answers.jsonl"
    (out / "finish" / "result.json").unlink()
    kept = answers.read_text().splitlines(keepends=True)
    assert len(kept) == 5
    answers.write_text("".join(kept[:3]))
    asked = []
    original = harness_model.HFLM.generate_until
    monkeypatch.setattr(
        harness_model.HFLM,
        "generate_until",
        lambda self, requests, disable_tqdm=False: asked.append(len(requests)) or original(self, requests),
    )
    assert main(["eval", adapter, *words]) == 0
    assert asked == [2]
    assert json.loads(capsys.readouterr().out)["tasks"] == whole["tasks"]


def test_another_adapter_is_not_taken_for_this_one(folder, tmp_path, capsys):
    import shutil

    data = tmp_path / "text.txt"
    data.write_text(" ".join(SENTENCES))
    mine = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    words = ["--tasks", "perplexity", "--text", str(data), "--length", "16", "--output", str(tmp_path / "out")]
    assert main(["eval", str(mine), *words]) == 0
    config = json.loads((mine / "adapter_config.json").read_text())
    (mine / "adapter_config.json").write_text(json.dumps({**config, "paca_alpha": 1}))
    assert main(["eval", str(mine), *words]) == 2
    assert "started with other settings: model.adapter was" in capsys.readouterr().err
    assert main(["eval", str(folder / "model"), *words]) == 2
    assert "now None" in capsys.readouterr().err


def test_several_tasks_in_one_command(adapter, mmlu_data, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(" ".join(SENTENCES))
    words = ["--tasks", "perplexity,mmlu", "--text", str(tmp_path / "text.txt"), "--mmlu-data", str(mmlu_data)]
    assert main(["eval", adapter, *words, "--limit", "1", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.index("perplexity:") < shown.index("mmlu:")
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"perplexity", "mmlu"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "perplexity"], "perplexity is measured on a text: add --text FILE"),
        (["--tasks", "mt-bench"], "mt-bench needs its questions: add --mt-bench DIR"),
        (["--tasks", ",", "--limit", "0"], "limit = 0: expected at least 1; no task is named"),
        (["--tasks", "finish", "--include", "{tasks}"], "Read them, and add --trust-task-files."),
        (["--tasks", "finish", "--include", "nowhere"], "there is no such folder"),
    ],
)
def test_what_is_refused(adapter, own_task, tmp_path, capsys, words, message):
    words = [word.format(tasks=own_task) for word in words]
    assert main(["eval", adapter, *words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_file_names_are_safe():
    assert slug("gpt-4o_mini.1") == "gpt-4o_mini.1"
    for name in ("../../etc", "a/b", ".hidden", "", "ü" * 300, "a b", "C:\\x"):
        made = slug(name)
        assert made
        assert made[0] not in ".-"
        assert not set(made) & set("/\\: ")
        assert len(made) < 80
    assert slug("a/b") != slug("a:b")


@pytest.mark.slow
def test_the_whole_road_fine_tuned_scored_exported_reloaded_and_scored_again(content, mmlu_data, tmp_path, capsys):
    text = content["data"]["train"]
    assert main(["finetune", str(write_recipe(tmp_path / "recipe.yaml", content))]) == 0
    run = str(tmp_path / "run")
    for to in ("merged", "lora", "peft"):
        assert main(["export", run, "--to", to]) == 0
    capsys.readouterr()
    found = {}
    for name in (run, f"{run}/merged", f"{run}/lora", f"{run}/peft"):
        out = ["--output", str(tmp_path / "scores" / name.rpartition("/")[2]), "--json"]
        words = ["--tasks", "perplexity,mmlu", "--text", text, "--length", "16", "--mmlu-data", str(mmlu_data)]
        assert main(["eval", name, *words, *out]) == 0
        found[name] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    own = found.pop(run)
    for name, (perplexity, mmlu) in found.items():
        assert perplexity["perplexity"] == pytest.approx(own[0]["perplexity"], rel=1e-5), name
        assert mmlu["groups"] == own[1]["groups"], name
