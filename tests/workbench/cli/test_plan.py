import json

import pytest
from tests.toys import tiny_llama_config
from tests.workbench.tiny import write_recipe

from paca.workbench.cli.main import main


@pytest.fixture
def config(tmp_path):
    tiny_llama_config(num_hidden_layers=1, vocab_size=300, max_position_embeddings=256).save_pretrained(tmp_path)
    return str(tmp_path / "config.json")


def plan(*words):
    return main(["plan", *words])


def test_json_holds_the_peak_of_each_method_and_the_picture_is_drawn(config, tmp_path, capsys):
    picture = tmp_path / "plan.png"
    assert plan(config, "--methods", "paca,lora", "--seq", "64", "--json", "--png", str(picture)) == 0
    paca, lora = json.loads(capsys.readouterr().out)["methods"]
    assert 0 < paca["total"] < lora["total"]
    assert 0 < paca["operations"]["adapter"] < lora["operations"]["adapter"] < paca["operations"]["forward"]
    assert sum(paca["by_category"].values()) == paca["total"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_longest_sequence_fits_and_the_next_does_not(config, capsys):
    size = "0.01GB"
    assert plan(config, "--methods", "paca", "--gpu", size, "--seq", "64", "--max-seq", "--json") == 0
    longest = json.loads(capsys.readouterr().out)["methods"][0]["max_seq"]
    assert longest > 0
    for seq, fits in ((longest, True), (longest + 128, False)):
        plan(config, "--methods", "paca", "--gpu", size, "--seq", str(seq), "--json")
        assert json.loads(capsys.readouterr().out)["methods"][0]["fits"] is fits


def test_when_nothing_fits_it_says_what_is_lacking_and_what_would_do(config, capsys):
    assert plan(config, "--methods", "paca", "--gpu", "0.004GB", "--seq", "256", "--batch", "4") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Nothing fits 0.004GB: paca comes nearest and lacks" in said
    assert "It fits with --checkpointing --batch 1: 0.00 GiB" in said


def test_lean_forwards_and_a_chunked_loss_take_less(config, capsys):
    peaks = []
    for words in (["--loss", "chunked"], ["--lean"], [], ["--lean", "--loss", "full"]):
        assert main(["plan", str(config), "--methods", "paca", "--json", *words]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["methods"][0]["total"])
    chunked, lean, full, lean_full = peaks
    assert lean < chunked
    assert lean_full < full
    assert main(["plan", str(config), "--methods", "paca", "--lean"]) == 0
    assert "tokens, lean: peak" in capsys.readouterr().out


def test_more_tokens_than_positions_warn(config, capsys):
    assert plan(config, "--methods", "paca", "--seq", "512", "--json") == 0
    assert "512 tokens are more than the model's 256 positions" in capsys.readouterr().err


def test_a_recipe_says_how_it_trains_and_arguments_win(capsys):
    assert plan("smollm2-python-reference", "--seq", "64", "--json") == 0
    (own,) = json.loads(capsys.readouterr().out)["methods"]
    assert own["method"] == "paca"
    assert plan("smollm2-python-reference", "--seq", "32", "--methods", "paca", "--json") == 0
    (shorter,) = json.loads(capsys.readouterr().out)["methods"]
    assert shorter["total"] < own["total"]
    assert shorter["trained"] == own["trained"]


def test_a_recipes_budget_is_what_is_planned(content, tmp_path, capsys):
    def trained(*words, **method):
        content["method"] = {"name": "paca", "random_seed": 0, **method}
        assert plan(str(write_recipe(tmp_path / "recipe.yaml", content)), *words, "--json") == 0
        return [row["trained"] for row in json.loads(capsys.readouterr().out)["methods"]]

    (whole,) = trained(r=3, target_modules="mlp-out")
    assert trained(budget=whole + 1, target_modules="mlp-out") == [whole]
    assert trained("--rank", "3", "--methods", "paca,lora", budget=500, target_modules="mlp-out")[0] == whole
    assert plan(str(tmp_path / "recipe.yaml"), "--methods", "paca,lora") == 2
    assert "recipe.yaml has a budget in place of a rank, which lora can't have; say --rank." in capsys.readouterr().err
    content["method"]["budget"] = 2
    assert plan(str(write_recipe(tmp_path / "recipe.yaml", content))) == 2
    assert "budget=2 is too small: one connection in each of the 2 layers is" in capsys.readouterr().err


def test_a_model_without_a_recipe_is_planned_by_a_budget(config, capsys):
    def trained(*words):
        assert plan(config, *words, "--json") == 0
        return {row["method"]: row["trained"] for row in json.loads(capsys.readouterr().out)["methods"]}

    whole = trained("--rank", "3", "--methods", "paca")["paca"]
    found = trained("--budget", str(whole + 1))
    assert list(found) == ["paca", "full"]  # those of the methods planned by themselves that have no rank of their own
    assert found["paca"] == whole
    share = (whole + 1) / found["full"]
    assert trained("--budget", f"{share:.9f}", "--methods", "paca")["paca"] == whole
    for words, said in (
        (("--methods", "paca,lora"), "--budget is PaCA's; lora can't have one. Leave it out, or say --rank."),
        (("--rank", "4"), "--rank 4 and --budget 500 both say how much is trained; leave one out."),
    ):
        assert plan(config, "--budget", "500", *words) == 2
        assert said in capsys.readouterr().err
    assert plan(config, "--budget", "2", "--methods", "paca") == 2
    assert "budget=2 is too small: one connection in each of the" in capsys.readouterr().err


def test_a_recipes_budget_gives_way_to_one_that_is_typed(content, tmp_path, capsys):
    content["method"] = {"name": "paca", "random_seed": 0, "r": 3, "target_modules": "all-linear"}
    assert plan(str(write_recipe(tmp_path / "recipe.yaml", content)), "--json") == 0
    (own,) = json.loads(capsys.readouterr().out)["methods"]
    budget = str(2 * own["trained"])
    assert plan(str(tmp_path / "recipe.yaml"), "--budget", budget, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["methods"]
    assert row["trained"] == 2 * own["trained"]


def test_a_named_gpu_bounds_the_time_from_below(config, capsys):
    assert plan(config, "--methods", "paca", "--gpu", "a100-80gb", "--seq", "64", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["methods"]
    assert row["seconds_at_least"] == row["operations"]["total"] / 312e12


def test_all_that_can_be_asked_for_fits_80_columns(config, capsys, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("paca.workbench.planning.rows.largest_that_fits", lambda *_: 2**20)
    monkeypatch.setattr("paca.workbench.planning.optimizers.PAGED_FROM", 1)
    words = ("--methods", "paca,moslora", "--gpu", "a100-80gb", "--seq", "64", "--max-seq", "--max-batch")
    assert plan(config, *words, "--optimizer", "paged_adamw_8bit", "--checkpointing") == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "method" in line)
    sizes = ["peak", "weights", "grads", "optim", "kept", "temp", "paged"]
    assert head.split() == ["method", *sizes, "fits", "longest", "largest"]
    assert any("1,048,576" in line for line in lines)
    assert max(len(line) for line in lines if "peak in" not in line) <= 80
    assert any(line.startswith("paca: peak in ") for line in lines)


def test_a_configuration_with_code_needs_the_flag(config, tmp_path, capsys):
    content = json.loads((tmp_path / "config.json").read_text())
    content |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert plan(str(tmp_path)) == 2
    assert "pass --trust-remote-code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama3-8", "--methods", "paca"], "did you mean 'llama3-8b'"),
        (["llama3-8b", "--gpu", "h10O"], "did you mean 'h100'"),
        (["llama3-8b", "--methods", "pacca"], "did you mean 'paca'"),
        (["llama3-8b", "--max-seq"], "pass --gpu 80GB"),
        (["llama3-8b", "--optimizer", "adamw_bnb_8bits"], "did you mean 'adamw_bnb_8bit'"),
        (["llama3-8b", "--loss", "chunk"], "did you mean 'chunked'"),
        (["llama3-8b", "--methods", "qpaca", "--ranks", "2"], "how 4-bit layers lie in shards is not counted"),
        (["no-such.yaml"], "There is no recipe file"),
    ],
)
def test_mistakes_are_refused_with_what_to_type(words, message, capsys):
    assert plan(*words) == 2
    assert message in capsys.readouterr().err
