"""A whole comparison on a tiny model: fair, complete, repeatable, resumable."""

import dataclasses
import json
import threading
from types import SimpleNamespace

import pytest
from tests.workbench.compare.conftest import RATES, run

from paca.errors import PacaError
from paca.workbench.compare.choice import choose_methods
from paca.workbench.compare.comparison import Runner, compare, ranked_entries
from paca.workbench.compare.folder import finished, open_folder, stored_units
from paca.workbench.compare.progress import Progress
from paca.workbench.compare.training import paced
from paca.workbench.compare.units import PROFILE, RUN, TIMING, Unit
from paca.workbench.compare.worker import InProcessWorker


class Counting:
    """Runs units elsewhere and remembers which; may be interrupted before one."""

    def __init__(self, worker, stop_at=None):
        self.worker, self.stop_at, self.ran = worker, stop_at, []

    def run(self, job, watch):
        if job.name == self.stop_at:
            raise KeyboardInterrupt
        self.ran.append(job.name)
        return self.worker.run(job, watch)


class Apart:
    """Finishes a unit only when another worker is at one too."""

    def __init__(self, meeting):
        self.meeting = meeting

    def run(self, job, watch):
        watch(1, 1, "waiting")
        self.meeting.wait(timeout=20)
        return {"name": job.name}


def row(results, method):
    return next(found for found in results["methods"] if found["method"] == method)


def units(folder, kind):
    return [unit for unit in stored_units(folder) if unit["job"]["kind"] == kind]


def test_every_method_has_a_row_with_everything_that_is_measured(compared):
    _, results = compared
    assert [found["method"] for found in results["methods"][:6]] == [
        "frozen",
        "frozen-lean",
        "paca",
        "lora",
        "moslora",
        "full",
    ]
    for name in ("paca", "lora", "moslora"):
        found = row(results, name)
        assert len(found["losses"]) == len(found["curves"]) == 2
        assert found["loss"] < found["loss_before"]
        assert all(found[key] > 0 for key in ("file_bytes", "merge_ms", "latency_ms", "merged_latency_ms"))
        assert all(found[key] > 0 for key in ("step_ms", "to_floor", "tokens_per_second", "kept_bytes"))
        assert found["peak_bytes"] == sum(found["peak_by_kind"].values())
        assert found["merged_differs"] < 1e-4
        assert abs(found["accuracy"]) <= 1
    assert row(results, "full")["trained_parameters"] == row(results, "full")["total_parameters"]
    assert row(results, "frozen")["forgotten"] == 0
    assert results["noise"] > 0
    assert results["machine"]["threads"] > 0
    assert len(row(results, "paca")["steps_ms"]) == 2


def test_a_method_that_cannot_take_the_layers_is_a_row_with_its_error_and_the_others_go_on(compared):
    _, results = compared
    found = row(results, "lora(target_modules=nowhere)")
    assert "can't be put onto" in found["error"]
    assert "nowhere" in found["error"]
    assert not found["out_of_memory"]
    assert found.get("loss") is None


def test_all_methods_start_from_the_same_weights_and_see_the_same_batches(compared):
    folder, _ = compared
    first = {}
    for unit in units(folder, RUN):
        if unit["job"]["rate"] is not None:
            first.setdefault(unit["job"]["seed"], []).append(unit["result"]["training_loss"][0])
    assert len(first) == 2
    for losses in first.values():
        assert len(losses) == 4
        assert all(step == 1 and loss == pytest.approx(losses[0][1], abs=1e-4) for step, loss in losses)
    assert first[3][0] != first[4][0], "another seed has another order"


def test_ranks_train_equally_many_parameters(compared):
    _, results = compared
    wanted = row(results, "paca")["trained_parameters"]
    assert row(results, "paca")["rank"] == 4
    assert row(results, "lora")["rank"] == 2
    for name in ("lora", "moslora"):
        assert row(results, name)["trained_parameters"] == pytest.approx(wanted, rel=0.1)


def test_with_match_rank_all_have_the_recipes(comparison, tmp_path):
    with Progress() as progress:
        entries = ranked_entries(dataclasses.replace(comparison, match="rank"), Runner(tmp_path, [], progress))
    assert {entry.setting.rank for entry in entries} == {4}


def test_all_methods_adapt_the_recipes_layers_in_the_recipes_blocks(comparison, tmp_path):
    own = {**comparison.recipe.method.config, "target_modules": "mlp", "layers_to_transform": "upper-half"}
    method = dataclasses.replace(comparison.recipe.method, config=own)
    recipe = dataclasses.replace(comparison.recipe, method=method)
    with Progress() as progress:
        of = dataclasses.replace(comparison, recipe=recipe, match="rank")
        entries = ranked_entries(of, Runner(tmp_path, [], progress))
    assert {(entry.setting.targets, entry.setting.blocks) for entry in entries} == {("mlp", "upper-half")}
    assert entries[-1].identity()["blocks"] == "'upper-half'"


def test_with_match_memory_each_has_the_largest_rank_that_peaks_no_higher(comparison, here, tmp_path):
    words = "paca,lora,paca(target_modules=mlp-out),lora(r=3),lora(target_modules=nowhere)"
    comparison = dataclasses.replace(comparison, methods=tuple(choose_methods(words)), match="memory")
    open_folder(tmp_path / "out", comparison.spec())
    with Progress() as progress:
        runner = Runner(tmp_path / "out", [here], progress)
        own, lora, out, given, _ = ranked_entries(comparison, runner)[2:]
        more = [
            dataclasses.replace(e, setting=dataclasses.replace(e.setting, rank=e.setting.rank + 1)) for e in (own, out)
        ]
        peaks = [
            here.run(Unit(PROFILE, (e,), {"limit": None}), lambda *_: None)["peak_bytes"]
            for e in (own, lora, out, *more)
        ]
    assert own.setting.rank == 4
    assert given.rank == 3
    assert peaks[1] <= peaks[0] or lora.setting.rank == 1
    assert out.setting.rank > 4
    assert peaks[2] <= peaks[0] < peaks[4]


class Timed:
    """Measures steps as it is told to, and runs all else elsewhere."""

    def __init__(self, worker, **floors):
        self.worker, self.floors = worker, floors

    def run(self, job, watch):
        if job.kind != TIMING:
            return self.worker.run(job, watch)
        methods = {name: {"to_floor": ratio, "to_floor_error": 0.0} for name, ratio in self.floors.items()}
        return {"methods": methods | {"frozen again": methods["frozen"]}, "rounds": 2, "machine": None}


def test_with_match_time_a_slower_method_takes_fewer_steps(comparison, here, tmp_path):
    comparison = dataclasses.replace(
        comparison,
        methods=tuple(choose_methods("paca,lora")),
        match="time",
        seeds=1,
        rates={"paca": [1e-2], "lora": [1e-2]},
    )
    folder = tmp_path / "out"
    open_folder(folder, comparison.spec())
    with Progress() as progress:
        compare(comparison, folder, [Timed(here, frozen=1.0, paca=1.1, lora=2.2)], progress)
    steps = {unit["job"]["methods"][0]["method"]: unit["result"]["steps"] for unit in units(folder, RUN)}
    assert steps == {"frozen": 0, "paca": 6, "lora": 3}
    losses = [unit["result"]["training_loss"] for unit in units(folder, RUN)]
    assert max(len(found) for found in losses) == 6
    assert len(units(folder, TIMING)) == 1, "timed once, before the runs"
    without = dataclasses.replace(comparison, methods=tuple(choose_methods("lora")))
    with (
        Progress() as progress,
        pytest.raises(PacaError, match=r"the recipe's own method, 'paca', sets the time.*\(lora\)"),
    ):
        compare(without, folder, [Timed(here, frozen=1.0, lora=2.2)], progress)


@pytest.mark.parametrize(
    ("arguments", "pace", "changes"),
    [
        ({"max_steps": 10, "num_train_epochs": 3.0}, 0.84, {"max_steps": 8}),
        ({"max_steps": 10, "num_train_epochs": 3.0}, 0.01, {"max_steps": 1}),
        ({"max_steps": -1, "num_train_epochs": 3.0}, 0.5, {"num_train_epochs": 1.5}),
        ({"max_steps": 10, "num_train_epochs": 3.0}, 1.0, {}),
    ],
)
def test_a_pace_is_spelled_as_the_arguments_are(arguments, pace, changes):
    assert paced(SimpleNamespace(**arguments), pace) == changes


def test_a_recipes_budget_is_what_all_train(comparison, here, tmp_path):
    config = {"budget": 4000, "target_modules": "mlp-out"}
    method = dataclasses.replace(comparison.recipe.method, config=config)
    recipe = dataclasses.replace(comparison.recipe, method=method)
    methods = tuple(choose_methods("paca,lora,paca(budget=2000),paca(target_modules=all-linear)"))
    comparison = dataclasses.replace(comparison, recipe=recipe, methods=methods)
    open_folder(tmp_path / "out", comparison.spec())
    with Progress() as progress:
        runner = Runner(tmp_path / "out", [here], progress)
        entries = ranked_entries(comparison, runner)[2:]
        found = runner.run([Unit(PROFILE, (entry,), {"limit": None}) for entry in entries])
    trained = [unit["trained_parameters"] for unit in found]
    assert trained[0] == pytest.approx(4000, rel=0.05)
    assert trained[1] == pytest.approx(trained[0], rel=0.1)
    assert trained[2] == pytest.approx(trained[0] / 2, rel=0.1)
    assert found[0]["rank"] == 2 * found[2]["rank"]
    assert "rank" not in found[1]
    assert entries[1].rank > 1
    with pytest.raises(PacaError, match=r"--match rank: the recipe has method.budget = 4000 in place of a rank"):
        ranked_entries(dataclasses.replace(comparison, match="rank"), runner)


def test_the_rate_with_the_lowest_loss_on_the_slice_is_used(compared):
    _, results = compared
    for name, rates in RATES.items():
        found = row(results, name)
        tried = dict(found["sweep"])
        assert sorted(tried) == rates
        assert found["rate"] == min(tried, key=tried.get)


def test_rates_are_tuned_on_training_data_that_is_neither_trained_on_nor_held_out(here):
    workload = here._workload
    kept, slice_ = workload.tuning
    train, held = ({tuple(ids) for ids in data["input_ids"]} for data in (workload.data.train, workload.data.held_out))
    assert {tuple(ids) for ids in slice_["input_ids"]} <= train
    assert len(kept) < len(workload.data.train)
    assert not {tuple(ids) for ids in slice_["input_ids"]} & (held - train)


def test_the_same_comparison_twice_has_identical_losses(comparison, compared, recipe, tmp_path):
    _, first = compared
    short = dataclasses.replace(comparison, methods=tuple(choose_methods("paca,lora")), seeds=1)
    again = run(short, tmp_path / "out", InProcessWorker(recipe))
    for name in ("paca", "lora"):
        curves = [
            [(point["step"], point["loss"]) for point in row(found, name)["curves"][0]] for found in (first, again)
        ]
        assert curves[0] == curves[1]


def test_an_interrupted_comparison_loses_only_the_unit_in_progress(comparison, here, tmp_path):
    short = dataclasses.replace(comparison, methods=tuple(choose_methods("paca,lora")), seeds=1, rates={})
    folder = tmp_path / "out"
    open_folder(folder, short.spec())
    with pytest.raises(KeyboardInterrupt), Progress() as progress:
        compare(short, folder, [Counting(here, stop_at="run--lora--seed3")], progress)
    rest = Counting(here)
    results = run(short, folder, rest)
    assert rest.ran == ["run--lora--seed3", "timing"]
    assert row(results, "lora")["loss"] < row(results, "lora")["loss_before"]
    third = Counting(here)
    run(short, folder, third)
    assert third.ran == []
    more = Counting(here)
    run(dataclasses.replace(short, seeds=2), folder, more)
    assert more.ran == ["run--paca--seed4", "run--lora--seed4"]


def test_out_of_memory_is_a_row_that_says_so(comparison, compared, here, tmp_path):
    limited = dataclasses.replace(
        comparison,
        methods=tuple(choose_methods("paca,full")),
        seeds=1,
        rates={},
        memory_limit=row(compared[1], "full")["peak_bytes"] - 1,
    )
    results = run(limited, tmp_path / "limited", here)
    assert row(results, "full")["out_of_memory"]
    assert row(results, "full")["error"].startswith("out of memory: a step needs 0.00 GB")
    assert row(results, "paca")["loss"] < row(results, "paca")["loss_before"]


@pytest.mark.parametrize("what", ["recipe", "match"])
def test_the_folder_of_another_recipe_is_refused(comparison, compared, what):
    folder, _ = compared
    changes = {
        "recipe": {"recipe": dataclasses.replace(comparison.recipe, seed=9)},
        "match": {"match": "rank"},
    }
    with pytest.raises(
        PacaError, match=r"holds a comparison of another recipe or other data: .*Add --overwrite to replace it"
    ) as e:
        open_folder(folder, dataclasses.replace(comparison, **changes[what]).spec())
    assert ("recipe.seed was 3, now 9" in str(e.value)) == (what == "recipe")


def test_a_folder_with_other_files_is_refused_and_nothing_is_written(comparison, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(PacaError, match=r"holds files that no comparison wrote \(thesis.tex\)"):
        open_folder(tmp_path, comparison.spec())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_takes_the_old_units_away(comparison, tmp_path):
    open_folder(tmp_path / "out", comparison.spec())
    (tmp_path / "out" / "units" / "old.json").write_text("{}")
    open_folder(tmp_path / "out", dataclasses.replace(comparison, match="rank").spec(), overwrite=True)
    assert list((tmp_path / "out" / "units").iterdir()) == []


def test_results_and_markdown_lie_beside_the_units(compared):
    folder, results = compared
    assert json.loads((folder / "results.json").read_text()) == results
    text = (folder / "report.md").read_text()
    assert "| paca | 4 |" in text
    assert "- **lora(target_modules=nowhere)**: " in text
    assert "Held-out loss before training" in text


def test_every_run_is_also_spelled_as_pefts_board_does(compared):
    folder, _ = compared
    names = sorted(path.stem for path in (folder / "peft").iterdir())
    assert names == sorted(f"{name}--seed{seed}" for name in ("paca", "lora", "moslora", "full") for seed in (3, 4))
    result = json.loads((folder / "peft" / "paca--seed3.json").read_text())
    assert set(result) == {"run_info", "train_info", "meta_info"}
    assert result["run_info"]["peft_config"]["peft_type"] == "PACA"
    assert result["train_info"]["status"] == "success"
    assert result["train_info"]["metrics"][-1]["test loss"] > 0
    assert {"step", "train loss", "train samples", "test accuracy"} <= set(result["train_info"]["metrics"][-1])
    assert json.loads((folder / "peft" / "full--seed3.json").read_text())["run_info"]["peft_config"] is None


def test_a_failed_unit_and_one_with_other_values_are_run_again(compared, comparison, here):
    folder, _ = compared
    with Progress() as progress:
        entries = ranked_entries(comparison, Runner(folder, [here], progress))
    assert finished(folder, Unit(PROFILE, (entries[1],), {"limit": None})) is not None
    assert finished(folder, Unit(PROFILE, (entries[1],), {"limit": 5})) is None
    assert finished(folder, Unit(PROFILE, (entries[-1],), {"limit": None})) is None, "it failed"


def test_several_workers_run_units_at_the_same_time_and_results_keep_their_order(comparison, tmp_path):
    open_folder(tmp_path / "out", comparison.spec())
    entry = comparison.methods[0]
    jobs = [Unit(RUN, (entry,), {"seed": seed}) for seed in range(6)]
    meeting = threading.Barrier(2)
    with Progress() as progress:
        found = Runner(tmp_path / "out", [Apart(meeting), Apart(meeting)], progress).run(jobs)
    assert [result["name"] for result in found] == [job.name for job in jobs]
    assert len(list((tmp_path / "out" / "units").iterdir())) == 6


def test_connections_may_be_chosen_by_data(comparison, here, tmp_path):
    methods = tuple(choose_methods("paca,paca(selection=activation,selection_batches=2)"))
    results = run(dataclasses.replace(comparison, methods=methods, seeds=1, rates={}), tmp_path / "out", here)
    chosen = row(results, "paca(selection=activation,selection_batches=2)")
    assert chosen["loss"] < chosen["loss_before"]
    assert chosen["losses"] != row(results, "paca")["losses"]
    assert chosen["peak_bytes"] == row(results, "paca")["peak_bytes"]
