"""What the report holds, without a browser."""

import csv
import io
import json
import re

import pytest
from tests.workbench.compare.found import NASTY, results, run, timing, units

from paca.workbench.compare.figures import charts, colours, shown_label
from paca.workbench.compare.html import page, summary_csv
from paca.workbench.compare.markdown import document


def embedded(text, name):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def test_one_file_asks_for_nothing_else():
    text = page(results())
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:)', own)
    assert "url(" not in own
    assert "default-src 'none'" in own


def test_the_page_is_small_and_has_the_part_of_plotly_that_its_charts_need():
    text = page(results())
    assert len(text.encode()) < 1_500_000
    assert "plotly.js (basic - minified)" in text
    kinds = {trace["type"] for chart in charts(results()) for trace in chart["figure"]["data"]}
    assert kinds <= {"scatter", "bar"}


def test_all_numbers_are_in_it_and_names_cannot_break_out():
    found = results()
    text = page(found)
    assert embedded(text, "results") == found
    assert NASTY not in text
    assert "lora(target_modules=&lt;/script&gt;&lt;b&gt;)" in text
    assert "no module &lt;here&gt;" in text
    assert "two&lt;three&gt;.txt" in text


def test_the_best_are_marked_and_only_they():
    rows = re.findall(r"<tr><td>.*?</tr>", page(results()))
    by_method = {re.search(r"</span>([^<]+)</td>", row)[1]: row for row in rows}
    assert '<td class="best" title="best"><b>2.5400 ± 0.0100</b></td>' in by_method["paca"]
    assert 'class="best"' not in by_method["frozen"]
    assert "<td>1.200 ± 0.012</td>" in by_method["lora"]


@pytest.mark.road("comparisons")
def test_cards_name_who_is_the_best_or_that_none_is():
    def cards(found):
        pattern = r'<div class="card"><span>(.*?)</span><strong>(.*?)</strong><span>(.*?)</span>'
        return {title: (names, value) for title, names, value in re.findall(pattern, page(found))}

    clear = cards(results())
    assert clear["lowest held-out loss"] == ("paca", "2.5400 ± 0.0100 ")
    assert clear["fastest step"][0] == "paca"
    alike = [unit for unit in units() if unit["job"]["kind"] != "timing"]
    alike = [unit for unit in alike if unit["job"]["kind"] != "run" or unit["job"]["methods"][0]["method"] == "frozen"]
    alike += [run("paca", seed, 5e-3, 2.5 + 0.1 * seed) for seed in (3, 4, 5)]
    alike += [run("lora", seed, 5e-3, 2.51 + 0.1 * seed) for seed in (3, 4, 5)]
    alike += [timing(frozen=1.0, frozen_again=1.01, paca=1.2, lora=1.205)]
    none = ("none", "no difference beyond noise")
    found = cards(results(alike))
    assert found["lowest held-out loss"] == found["fastest step"] == none
    assert found["least memory"][0] == "paca"
    assert "Over 3 seeds no loss is lower than the others by more than noise." in page(results(alike))
    single = [unit for unit in units() if unit["job"].get("seed", 3) == 3]
    assert cards(results(single))["lowest held-out loss"] == none
    assert "One seed: how far losses scatter between runs is not known" in page(results(single))


@pytest.mark.road("comparisons")
@pytest.mark.parametrize("write", [page, document])
def test_a_report_of_operations_alone_speaks_of_nothing_else(write):
    counted = write(results([unit for unit in units() if unit["job"]["kind"] == "operations"]))
    whole = write(results())
    own = re.sub(r"<script.*?</script>|<details>.*?</details>", "", counted, flags=re.DOTALL)
    assert "Operations of a step" in own
    assert "Operations are counted, not timed." in own
    for word in ("20 steps", "seeds", "turns", "live storages", "Held-out", "tokens/s", " ms"):
        assert word in whole or (word in ("20 steps", "seeds") and write is document)
        assert word not in own


def test_every_measurement_has_its_chart():
    made = {chart["id"]: chart["figure"] for chart in charts(results())}
    wanted = "loss-step loss-time training-loss memory time pareto pareto-time throughput longest operations"
    assert list(made) == wanted.split()
    timed = [trace for trace in made["loss-time"]["data"] if trace.get("mode") == "lines+markers"]
    assert [trace["x"][-1] for trace in timed] == pytest.approx([20 * 0.105, 20 * 0.120]), "at the time taken in turns"
    raw, mean = made["training-loss"]["data"][:2]
    assert (raw["mode"], mean["mode"]) == ("markers", "lines")
    assert raw["marker"]["opacity"] < 0.5
    assert len(raw["y"]) == 3 * len(mean["y"]), "of every seed"
    lines = [trace for trace in made["loss-step"]["data"] if trace.get("mode") == "lines+markers"]
    assert [trace["name"] for trace in lines] == ["paca", "lora"]
    assert lines[0]["y"][-1] == pytest.approx(2.54)
    assert all(trace["line"]["dash"] == "dot" for trace in [*lines, *timed]), "nothing was measured between the points"
    bands = [trace for trace in made["loss-step"]["data"] if trace.get("fill") == "toself"]
    assert (max(bands[0]["y"][2:4]), min(bands[0]["y"][2:4])) == pytest.approx((2.55, 2.53))
    assert bands[0]["mode"] == "lines"
    kinds = {trace["name"]: trace["x"] for trace in made["memory"]["data"]}
    assert kinds["weights"] == [500, 510, 510]


def test_loss_stands_against_memory_and_against_time_with_its_error():
    found = results()
    made = {chart["id"]: chart["figure"] for chart in charts(found)}
    methods = {row["method"]: row for row in found["methods"]}
    for key, place in (
        ("pareto", lambda row: row["peak_bytes"] / 2**20),
        ("pareto-time", lambda row: 20 * row["step_ms"] / 1000),
    ):
        points = {trace["name"]: trace for trace in made[key]["data"] if trace["mode"] == "markers+text"}
        assert list(points) == ["paca", "lora"]
        for name, trace in points.items():
            assert trace["x"] == [pytest.approx(place(methods[name]))]
            assert trace["error_y"]["array"] == [pytest.approx(2 * methods[name]["loss_error"])]
    alone = charts(results([unit for unit in units() if unit["job"].get("seed", 3) == 3]))
    (front,) = (chart["figure"] for chart in alone if chart["id"] == "pareto")
    assert not any("error_y" in trace and trace["error_y"].get("array") for trace in front["data"])


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("paca", "paca"),
        ("lora(r=8)", "lora(r=8)"),
        ("lora(target_modules=[q_proj, v_proj],r=2)", "lora(<br>target_modules=<br>[q_proj, v_proj],<br>r=2)"),
        ("a" * 40, f"{'a' * 18}<br>{'a' * 18}<br>aaaa"),
        ("lora(a=<b>)", "lora(a=&lt;b&gt;)"),
    ],
)
def test_labels_of_charts_are_short_lines(label, shown):
    assert shown_label(label) == shown


def test_what_was_not_measured_has_no_chart():
    found = results()
    found["methods"] = [{key: row[key] for key in ("method", "error")} for row in found["methods"]]
    assert charts({**found, "pareto": []}) == []
    assert "<h2>Summary</h2>" in page({**found, "pareto": [], "best": {}})


def test_a_method_has_one_colour_and_the_floor_is_grey():
    tints = colours(results()["methods"])
    assert len(set(tints.values())) == 4
    assert tints["frozen"] == "#8a94a6"


@pytest.mark.parametrize("accumulated", [None, 1, 4])
def test_a_step_of_several_batches_takes_all_of_their_time(accumulated):
    found = results()
    found["recipe"]["training"]["gradient_accumulation_steps"] = accumulated
    chart = next(chart for chart in charts(found) if chart["id"] == "loss-time")
    paca = next(trace for trace in chart["figure"]["data"] if trace.get("name") == "paca")
    assert paca["x"][-1] == pytest.approx(20 * (0.105 + ((accumulated or 1) - 1) * 0.095 * 1.05))


def test_without_times_taken_in_turns_there_is_no_loss_by_time():
    found = results([unit for unit in units() if unit["job"]["kind"] != "timing"])
    assert "loss-time" not in {chart["id"] for chart in charts(found)}


def test_the_summary_as_comma_separated_values():
    rows = list(csv.DictReader(io.StringIO(summary_csv(results()))))
    assert [row["method"] for row in rows] == ["frozen", "paca", "lora", NASTY]
    assert float(rows[1]["loss"]) == results()["methods"][1]["loss"]
    assert rows[3]["error"] == "no module <here>"
