"""Nothing that is finished, or that someone else wrote, is lost."""

import pytest
from tests.workbench.tiny import write_recipe

from paca import PacaError
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune
from paca.workbench.training.run_folder import BEFORE, METRICS, RECIPE, cleared_if_refused, open_run


@pytest.fixture
def recipe(content, tmp_path):
    return read_recipe(write_recipe(tmp_path / "recipe.yaml", content))


@pytest.fixture
def other_recipe(content, tmp_path):
    return read_recipe(write_recipe(tmp_path / "other.yaml", content), ["training.max_steps=7"])


def test_a_new_folder_gets_the_recipe(tmp_path, recipe):
    assert open_run(tmp_path / "a" / "b", recipe) is False
    assert read_recipe(tmp_path / "a" / "b" / RECIPE) == recipe


def test_resume_where_nothing_was_begun_begins(tmp_path, recipe):
    assert open_run(tmp_path / "a", recipe, resume=True) is False
    assert (tmp_path / "a" / RECIPE).exists()


def test_an_unfinished_run_says_what_to_type(tmp_path, recipe):
    open_run(tmp_path / "a", recipe)
    refusal = r"not finished\. Add --resume to continue from its last checkpoint, --overwrite"
    with pytest.raises(PacaError, match=refusal):
        open_run(tmp_path / "a", recipe)
    assert open_run(tmp_path / "a", recipe, resume=True) is False


@pytest.mark.parametrize(
    ("there", "error", "left"),
    [
        ((), PacaError, []),
        ((), RuntimeError, [RECIPE]),
        ((BEFORE,), PacaError, [BEFORE, RECIPE]),
        (("checkpoint-3",), PacaError, ["checkpoint-3", RECIPE]),
    ],
)
def test_a_run_that_is_refused_with_nothing_measured_leaves_nothing(tmp_path, recipe, there, error, left):
    folder = tmp_path / "a"
    open_run(folder, recipe)
    for name in there:
        (folder / name).mkdir()
    with pytest.raises(error), cleared_if_refused(folder):
        raise error("no such model")
    assert sorted(path.name for path in folder.iterdir()) == left


def test_the_mended_command_runs_after_a_refused_one(content, tmp_path):
    def run(model):
        words = [f"model.name={model}", "training.max_steps=1", f"output_dir={tmp_path / 'run'}"]
        return finetune(read_recipe(write_recipe(tmp_path / "recipe.yaml", content), words), doctor=False)

    with pytest.raises(PacaError, match="'org/nosuch' is not an embedded one"):
        run("org/nosuch")
    assert run(content["model"]["name"])["steps"] == 1


def test_a_finished_run_is_refused_without_overwrite(tmp_path, recipe, other_recipe):
    folder = tmp_path / "a"
    open_run(folder, recipe)
    (folder / METRICS).write_text("{}")
    (folder / "checkpoint-2").mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(PacaError, match=r"holds a finished run\. Add --overwrite to replace it, or write elsewhere"):
        open_run(folder, recipe)
    assert open_run(folder, recipe, resume=True) is True
    assert open_run(folder, other_recipe, overwrite=True) is False
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", RECIPE]
    assert read_recipe(folder / RECIPE) == other_recipe


def test_resume_needs_the_same_recipe(tmp_path, recipe, other_recipe):
    open_run(tmp_path / "a", recipe)
    with pytest.raises(
        PacaError, match=r"started with another recipe: training\.max_steps was 6, now 7\. Resume with"
    ):
        open_run(tmp_path / "a", other_recipe, resume=True)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_other_files_is_never_touched(tmp_path, recipe, flags):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("mine")
    with pytest.raises(
        PacaError, match=r"holds files that no run of paca wrote \(README\.md\); name a new or an empty"
    ):
        open_run(tmp_path / "a", recipe, **flags)
    assert (tmp_path / "a" / "README.md").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path, recipe):
    (tmp_path / "a").touch()
    with pytest.raises(PacaError, match="is not a folder; name one with --output DIR"):
        open_run(tmp_path / "a", recipe)
