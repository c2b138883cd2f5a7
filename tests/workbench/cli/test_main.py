"""The command as it is typed: status, what goes to which stream, and that help is quick."""

import re
import subprocess
import sys

import pytest
from tests.workbench.tiny import recipe_content, save_model, write_recipe, write_text

from paca.workbench.cli.main import VERBS, main, parse


@pytest.fixture
def recipe(tmp_path):
    content = recipe_content(save_model(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "run")
    return str(write_recipe(tmp_path / "recipe.yaml", content))


def test_help_shows_a_command_and_what_it_prints(capsys):
    for arguments in (["--help"], ["finetune", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert "$ paca finetune smollm2-python-reference" in shown
        assert "improved: held-out perplexity" in shown


def test_no_verb_and_a_wrong_option_are_usage_errors(capsys):
    for arguments, expected in (([], "required: VERB"), (["finetune", "r", "--resume", "--overwrite"], "not allowed")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err


def test_overrides_may_stand_after_options():
    words = ["finetune", "r", "seed=1", "--no-doctor", "training.max_steps=5", "--output", "o", "a=4"]
    arguments = parse(words)
    assert arguments.overrides == ["seed=1", "training.max_steps=5", "a=4"]
    assert arguments.output == "o"


LISTS = {
    "plan": ["m", "--methods"],
    "compare": ["r", "--methods"],
    "select": ["r", "--strategies"],
    "eval": ["m", "--tasks"],
}


@pytest.mark.parametrize("verb", LISTS)
def test_options_that_take_several_words_take_commas_and_spaces(verb):
    [first, option] = LISTS[verb]
    for words in (["a,b", "c"], ["a", "b", "c"], ["a,b,c"], ["a, b c"]):
        assert getattr(parse([verb, first, option, *words]), option.removeprefix("--")) == ["a", "b", "c"]


SWALLOWED = {
    # a verb and its options, of which the last swallows: the verb's first word, the option's own, and what may follow
    "compare --methods": ("smollm2-python-reference", ["paca", "lora"], ["--seeds 2", "seed=1"]),
    "compare --rates": ("mine.yml", ["paca=1e-3", "lora=2e-3"], ["--seeds 2", "seed=1"]),
    "select --strategies": ("recipe file.txt", ["random", "weight"], ["--output there", "seed=1"]),
    "plan --methods": ("smollm2-135m", ["paca", "lora(r=8)"], ["--seq 8"]),
    "eval --tasks": ("run", ["mmlu", "perplexity"], ["--limit 3"]),
    "eval --tasks mmlu --text": ("run", ["recipe file.txt", "data.jsonl"], ["--limit 3"]),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe file.txt").touch()
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").touch()
    (tmp_path / "config.json").touch()


@pytest.mark.parametrize("typed", SWALLOWED)
def test_the_first_word_may_stand_behind_a_list(typed, files):
    verb, *options = typed.split()
    first, own, followed = SWALLOWED[typed]
    for after in ("", *followed):
        for words in (own, [",".join(own)]):
            arguments = parse([verb, *options, *words, first, *after.split()])
            named = getattr(arguments, "recipe", None) or arguments.model
            assert (named, getattr(arguments, options[-1].removeprefix("--"))) == (first, own)


@pytest.mark.parametrize("first", ["llama3-8b", "meta-llama/Llama-3.2-1B", "config.json", ".", "nosuch.yaml", "run"])
def test_a_plans_model_may_stand_behind_its_methods(first, files):
    arguments = parse(["plan", "--methods", "paca", first, "--seq", "8"])
    assert (arguments.model, arguments.methods) == (first, ["paca"])


def test_a_first_word_in_its_place_leaves_lists_alone(files):
    arguments = parse(["compare", "--methods", "paca", "nosuch.yaml", "--seeds", "1", "mine.yaml"])
    assert (arguments.recipe, arguments.methods) == ("mine.yaml", ["paca", "nosuch.yaml"])


def test_several_adapters_may_stand_behind_the_tasks(files):
    for words in (["--tasks", "mmlu", "run", "run/adapter"], ["run", "--tasks", "mmlu", "run/adapter"]):
        arguments = parse(["eval", *words])
        assert (arguments.model, arguments.more, arguments.tasks) == ("run", ["run/adapter"], ["mmlu"])


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["compare", "--methods", "paca", "lora"], "RECIPE"),
        (["select", "--strategies", "random"], "RECIPE"),
        (["plan", "--methods", "paca"], "MODEL"),
        (["eval", "--tasks", "mmlu"], "MODEL_OR_ADAPTER"),
        (["finetune", "--resume"], "RECIPE"),
    ],
)
def test_a_first_word_that_is_nowhere_is_named(words, missing, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["finetun"], "'finetune'"),
        (["plan", "m", "--methds", "paca"], "'--methods'"),
        (["recipes", "shwo"], "'show'"),
        (["compare", "r", "--match", "ranks"], "'rank'"),
        (["export", "a", "--to", "mergd"], "'merged'"),
    ],
)
def test_a_word_that_is_not_known_comes_with_the_near_one(words, near, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert f"did you mean {near}?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_the_usage_says_what_comes_first_and_what_may_be_left_out(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    usage = capsys.readouterr().out.splitlines()[0]
    assert re.match(rf"usage: paca {verb} (RECIPE|MODEL|ADAPTER|-- COMMAND|\[show NAME\])", usage)
    assert usage.endswith(("[OPTION ...]", "[WORD ...]", "[show NAME]"))


@pytest.mark.parametrize(
    "words",
    [["finetune", "r", "--resume", "x"], ["export", "adapter", "--to", "lora", "a=1"], ["finetune", "r", "--a=1"]],
)
def test_other_words_after_options_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "heavier"),
    [
        ("build_parser().format_help()", "'ruamel'"),
        ("main(['recipes'])", "'huggingface_hub'"),
        *(
            (f"main(['{verb}', 'nosuch'])", "'accelerate'")
            for verb in ("finetune", "doctor", "data", "compare", "select")
        ),
    ],
)
def test_help_and_the_list_of_recipes_and_a_missing_recipe_import_nothing_heavy(statement, heavier):
    """So that all answer in less than 0.3 s."""
    code = (
        f"import sys; from paca.workbench.cli.main import build_parser, main; {statement};"
        f"heavy = ('torch', 'transformers', 'peft', 'trl', 'datasets', 'numpy', {heavier});"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_finetune_prints_three_lines_at_the_end(recipe, tmp_path, capsys):
    assert main(["finetune", recipe, "training.max_steps=2", "--output", str(tmp_path / "there")]) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["improved", "adapter", "merge"]
    assert (tmp_path / "there" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.yaml"], "There is no recipe file 'nowhere.yaml'"),
        (["{recipe}", "training.max_step=1"], "did you mean 'max_steps'?"),
        (["{recipe}", "data.train=nowhere.txt"], "There is no data file 'nowhere.txt'"),
        (["{recipe}", "model.name=smollm2-135m-instrukt"], "did you mean 'smollm2-135m-instruct'?"),
    ],
)
def test_a_users_mistake_is_a_message_and_status_2(recipe, capsys, arguments, expected):
    assert main(["finetune", *(argument.format(recipe=recipe) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("paca finetune: ") == 1
    assert expected in captured.err
    assert "Traceback" not in captured.err


def test_ctrl_c_is_no_traceback(recipe, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("paca.workbench.training.run.finetune", interrupt)
    assert main(["finetune", recipe]) == 130
    assert capsys.readouterr().err.endswith("paca finetune: interrupted; add --resume to continue\n")


def test_a_missing_library_says_what_to_install(recipe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "paca.workbench.training.report", None)
    monkeypatch.delitem(sys.modules, "paca.workbench.training.text", raising=False)
    assert main(["finetune", recipe]) == 2
    assert "pip install 'paca-peft[train]'" in capsys.readouterr().err
