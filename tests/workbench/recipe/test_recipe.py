"""Recipes: what is read, what is refused, and that all problems come at once."""

import pytest
from tests.workbench.tiny import write_recipe

from paca import PacaError
from paca.workbench.base.schema import describe_difference
from paca.workbench.base.yaml import parse
from paca.workbench.methods.registry import known_methods
from paca.workbench.recipe.recipe import find_recipe, read_recipe, shipped_recipes
from paca.workbench.recipe.text_arguments import REFUSED_TRAINING_KEYS


@pytest.fixture
def path(content, tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", content)


def problems_of(path, *overrides):
    with pytest.raises(PacaError) as caught:
        read_recipe(path, overrides)
    return str(caught.value)


def test_a_recipe_reads_the_same_after_it_was_written(path, tmp_path):
    recipe = read_recipe(path)
    assert read_recipe(write_recipe(tmp_path / "again.yaml", recipe.to_dict())) == recipe


def test_the_method_is_paca_unless_named(content, tmp_path):
    del content["method"]["name"]
    assert read_recipe(write_recipe(tmp_path / "r.yaml", content)).method.name == "paca"


def test_overrides_are_yaml_scalars_at_dotted_keys(path):
    recipe = read_recipe(path, ["training.learning_rate=5e-3", "method.r=8", "seed=7", "data.train=[a.txt, b.txt]"])
    assert recipe.training["learning_rate"] == 0.005
    assert recipe.method.config["r"] == 8
    assert recipe.seed == 7
    assert recipe.data.train == ["a.txt", "b.txt"]


def test_output_argument_wins(path):
    assert read_recipe(path, ["output_dir=a"], output_dir="b").output_dir == "b"


def test_all_problems_at_once_with_the_near_keys(path):
    message = problems_of(
        path,
        "modle.name=x",
        "data.trian=y",
        "training.max_step=3",
        "method.rank=2",
        "method.r=abc",
        "seed=one",
        "junk",
    )
    assert "has 7 problems" in message
    for expected in (
        "modle = {'name': 'x'}: there is no such key; did you mean 'model'?",
        "data.trian = 'y': there is no such key; did you mean 'train'?",
        "training.max_step = 3: there is no such key; did you mean 'max_steps'?",
        "method.rank = 2: there is no such key",
        "method.r = 'abc': expected int, got str",
        "seed = 'one': expected int, got str",
        "'junk' is not an override; write key=value, such as training.max_steps=5",
    ):
        assert expected in message


def test_missing_keys_are_named(tmp_path):
    message = problems_of(write_recipe(tmp_path / "r.yaml", {"model": {}, "data": {}}))
    assert "model.name is missing" in message
    assert "data.train is missing" in message
    assert "output_dir is missing: name the folder to write to, or pass --output DIR" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dtype=float8", "model.dtype = 'float8': expected one of auto, float32, bfloat16, float16"),
        ("method.name=lorra", "method.name = 'lorra': PEFT knows no such method; did you mean 'lora'?"),
        ("method.r=0", "method: PacaConfig: `r` should be a positive integer value but the value passed is 0."),
        ("method.task_type=SEQ_CLS", "method.task_type = 'SEQ_CLS': not to be set here; it is always CAUSAL_LM"),
        ("data.holdout_every=1", "data.holdout_every = 1: expected at least 2"),
        ("data.holdout_every=null", "neither is given, expected one of them"),
        ("data.eval=more.txt", "both are given, expected one of them"),
        ("data.eval_limit=0", "data.eval_limit = 0: expected at least 1"),
        ("training.learning_rate=fast", "training.learning_rate = 'fast': expected float, got str"),
        ("training.lean=1", "training.lean = 1: expected bool, got int"),
        ("training.optim=adamm", "training: adamm is not a valid OptimizerNames, please select one of"),
        ("model=smollm2", "model = 'smollm2': expected keys and values, got str"),
        ("seed.x=1", "seed.x cannot be set: seed is 3, which has no keys of its own"),
        ("seed=[", "the value of 'seed=[' is not valid YAML"),
    ],
)
def test_bad_values(path, override, expected):
    assert expected in problems_of(path, override)


@pytest.mark.parametrize("key", REFUSED_TRAINING_KEYS)
def test_keys_that_would_turn_nothing_are_refused(path, key):
    assert f"training.{key} = 1: not to be set here; {REFUSED_TRAINING_KEYS[key]}" in problems_of(
        path, f"training.{key}=1"
    )


def test_every_method_of_peft_can_be_named():
    assert {"paca", "lora", "ia3", "shira"} <= set(known_methods())


def test_a_file_that_is_no_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(PacaError, match=r"r\.yaml is not valid YAML"):
        read_recipe(path)
    path.write_text("- a", encoding="utf-8")
    with pytest.raises(PacaError, match="must hold keys such as `model:` and `data:`"):
        read_recipe(path)


def test_recipes_that_ship_are_found_by_name_and_valid():
    assert "smollm2-python-reference" in shipped_recipes()
    for name, path in shipped_recipes().items():
        assert find_recipe(name) == path
        assert read_recipe(path).output_dir == f"outputs/{name}"


def test_a_recipe_that_is_not_there(tmp_path):
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(PacaError, match=r"did you mean '.*mine\.yaml'\?.*smollm2-python-reference"):
        find_recipe(str(tmp_path / "mien.yaml"))


@pytest.mark.road("problem-list")
def test_a_recipe_whose_name_is_nearly_right(tmp_path):
    with pytest.raises(PacaError, match=r"no recipe file 'smollm2-python-refrence'; did you mean 'smollm2-python-ref"):
        find_recipe("smollm2-python-refrence")
    with pytest.raises(PacaError, match=r"is a folder, not a recipe file$"):
        find_recipe(str(tmp_path))
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(PacaError, match=r"is a folder, not a recipe file; did you mean '.*/recipe\.yaml'\?$"):
        find_recipe(str(tmp_path))


def test_differences_between_recipes(path):
    old, new = (read_recipe(path, [f"method.r={r}", f"output_dir=o{r}"]).to_dict() for r in (4, 8))
    assert describe_difference(old, new) == ["method.r was 4, now 8"]
    assert describe_difference(old, parse("model: {name: x}"))[0].startswith("model.name was ")
