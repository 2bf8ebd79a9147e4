"""What the report says of many candidates: the numbers that went in, and nothing where none did."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_evaluations import LENGTHS, made_evaluation
from many_candidates import LONG_LABEL, candidate, needles, patch, stages

from ropepatch.evals import compare, write_report
from ropepatch.evals.heat_map import draw_maps, gain_cells, score_cells
from ropepatch.evals.page_ledger import ledger
from ropepatch.evals.page_tables import number_tables
from ropepatch.evals.page_verdicts import candidate_rows, method_grid
from ropepatch.evals.patches import by_method
from ropepatch.evals.tasks.scores import TaskScores
from ropepatch.evals.verdict import judge


@pytest.fixture(scope="module")
def made():
    return stages()


@pytest.fixture(scope="module")
def verdicts(made):
    return [judge(made[0], each) for each in made[1:]]


def said(panel):
    """What every cell of a map says, by its first line."""
    root = ET.fromstring(panel.svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    titles = [cell.find("title").text for cell in root.iter("g") if cell.get("class") == "cell"]
    return dict(title.split("\n") for title in titles)


def test_cells_have_wilsons_interval_of_their_own_prompts():
    cells = score_cells({128: needles(wrong=1)}, seed=0)
    assert len(cells) == 11
    found = cells[128, 4]
    # Of 6, 5 are right: (5/6 + z²/12 ± z √(5/216 + z²/144)) / (1 + z²/6) with z = 1.959964
    assert found.prompts == 6
    assert found.interval.value == pytest.approx(5 / 6)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.43650, 0.96995), abs=1e-5)


def test_gains_of_a_cell_are_the_mean_over_its_prompts():
    scores = replace(needles(), gains=np.arange(66, dtype=np.float32))
    cells = gain_cells({128: scores}, seed=0)
    # Prompts 18 … 23 stand at 30 %.
    found = cells[128, 3].interval
    assert found.value == pytest.approx(20.5)
    assert 18 <= found.low < 20.5 < found.high <= 23


def test_prompts_without_a_depth_are_in_no_cell():
    nowhere = np.full(4, np.nan)
    scores = TaskScores(np.ones(4), None, nowhere, nowhere, 0.0, "same")
    assert score_cells({128: scores}, seed=0) == {}
    assert draw_maps([replace(made_evaluation(), tasks={"needle": {128: scores}})]) == []


def test_every_cell_says_where_it_is_and_what_was_found_there():
    nats, percent = draw_maps([candidate("a", tasks=())])
    found = said(percent.panels[0])
    assert len(found) == len(LENGTHS) * 11
    # At 512 tokens two of six are wrong: Wilson's interval of 4 of 6 is 30.0 to 90.3 %.
    assert found["512 tokens, needle at 50 %"] == "67 % [30.0, 90.3], 6 prompts"
    assert said(nats.panels[0])["512 tokens, needle at 40 %"] == "1.20 [1.20, 1.20], 6 prompts"


def test_missing_cells_are_hatched_and_say_so():
    percent = draw_maps([candidate("a", tasks=())])[1].panels[0]
    missing = [place for place, text in said(percent).items() if "not measured" in text]
    assert missing == ["1024 tokens, needle at 90 %", "1024 tokens, needle at 100 %"]
    assert percent.svg.count("url(#h") == 2
    assert re.findall(r"<text[^>]*>([^<]*)</text>", percent.svg).count("–") == 2


def test_a_map_in_nats_needs_gains():
    scores = replace(needles(), gains=None)
    charts = draw_maps([replace(made_evaluation(), tasks={"needle": {128: scores}})])
    assert [chart.title for chart in charts] == ["Needle by length and depth, %"]


def test_stronger_cells_have_stronger_colours_on_one_scale_for_all_stages():
    weak, strong = needles(), replace(needles(), gains=np.full(66, 4.0, np.float32))
    base = made_evaluation("a")
    charts = draw_maps(
        [
            replace(base, label=n, tasks={"needle": {128: s}})
            for n, s in zip("ab", (weak, strong), strict=True)
        ]
    )
    levels = [
        [int(n) for n in re.findall(r"fill: var\(--level-(\d)", panel.svg)]
        for panel in charts[0].panels
    ]
    # Gains fall from 2 to 0 of at most 4 nats, in seven steps from 0 to 4.
    assert levels[0] == [3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert levels[1] == [6] * 11


def test_gains_that_are_not_finite_are_no_colour():
    broken = replace(needles(), gains=np.full(66, np.nan, np.float32))
    panel = draw_maps([replace(made_evaluation(), tasks={"needle": {128: broken}})])[0].panels[0]
    assert said(panel)["128 tokens, needle at 0 %"].startswith("not finite")
    assert "fill: var(--level" not in panel.svg


def test_five_stages_share_a_drawing_and_more_are_parted_by_method(made):
    assert by_method(made[:5]) == [("", made[:5])]
    groups = [(name, [stage.label for stage in members]) for name, members in by_method(made)]
    assert groups == [
        ("yarn", ["unpatched", "yarn ×2", "yarn ×4"]),
        ("linear", ["unpatched", "linear ×2", "linear ×4"]),
        ("ntk", ["unpatched", "ntk ×4"]),
        ("without a patch", ["unpatched", LONG_LABEL]),
    ]


def test_a_method_with_many_stages_has_several_drawings(made):
    yarns = [replace(made[1], label=f"yarn {number}") for number in range(6)]
    sizes = [len(members) for _, members in by_method([made[0], *yarns])]
    assert sizes == [5, 3]


def test_rows_tell_each_verdict_with_its_numbers(made, verdicts):
    rows = {row.label: row for row in candidate_rows(made, verdicts)}
    assert [row.word for row in rows.values()] == [verdict.word for verdict in verdicts]
    # The made losses are 0.3 nats lower at 1024 tokens, for which ×4 is made, and 0.2 at 512.
    means = {length: made[2].target_losses[length].mean(dtype=float) for length in LENGTHS}
    had = made[0].target_losses[256].mean(dtype=float)
    assert rows["yarn ×4"].gain.value == f"{means[1024] - had:+.3f}".replace("-", "−")
    assert rows["yarn ×4"].gain.ends.endswith("at 1024")
    assert rows["yarn ×2"].gain.ends.endswith("at 512")
    assert (rows["linear ×4"].sign, rows["linear ×4"].word) == ("✗", "regressed")


def test_grid_has_a_cell_for_each_method_and_factor_and_gaps_stay_empty(made, verdicts):
    grid = method_grid(made, candidate_rows(made, verdicts))
    assert grid.factors == ("×2", "×4")
    found = {method: [[row.label for row in cell] for cell in cells] for method, cells in grid.rows}
    assert found == {
        "yarn": [["yarn ×2"], ["yarn ×4"]],
        "linear": [["linear ×2"], ["linear ×4"]],
        "ntk": [[], ["ntk ×4"]],
    }


def test_one_patch_alone_makes_no_grid(made, verdicts):
    assert method_grid(made, candidate_rows(made, verdicts[:1])) is None


def test_tables_have_a_row_for_each_stage_and_a_column_for_each_length(made):
    first = number_tables(made, [])[0]
    assert first.columns == ("128 (0.5×)", "256 (1×)", "512 (2×)", "1024 (4×)")
    assert [label for label, _ in first.rows] == [stage.label for stage in made]
    loss = made[3].target_losses[512].mean(dtype=float)
    assert first.rows[3][1][2].value == f"{loss:.3f}"


def test_ledger_parts_what_is_shared_from_what_is_not(made):
    found = ledger(made)
    shared = dict(found.shared)
    assert shared["protocol"] == "same"
    assert shared["truncated"] == "0"
    assert shared["dtype"] == "torch.float32"
    assert shared["versions: torch"] == "2.13.0"
    assert found.differing == ("patch",)
    patches = {label: values[0] for label, values in found.stages}
    assert patches["yarn ×4"] == "yarn(factor=4.0), 256 → 1024 tokens"
    assert patches["unpatched"] == "none"


def test_page_and_json_tell_the_same_verdicts(made, verdicts, tmp_path):
    others = [compare(made[0], each) for each in made[1:]]
    path = write_report(made, others, tmp_path, title="t", verdicts=verdicts)
    page = path.read_text(encoding="utf-8")
    told = json.loads((tmp_path / "report.json").read_text())["verdicts"]
    assert [each["verdict"] for each in told] == [verdict.word for verdict in verdicts]
    gain = told[1]["extension_gain"]["1024"]["value"]
    assert gain == pytest.approx(verdicts[1].gains[1024].value)
    assert page.count('class="result') == 5
    for verdict in verdicts:
        assert f"{verdict.price.value:+.3f}".replace("-", "−") in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def attributes(page):
    """Names of all attributes of its elements."""
    found = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, pairs: found.update(name for name, _ in pairs)
    parser.feed(page)
    assert "aria-label" in found
    return found


def test_names_with_markup_stay_names_everywhere(tmp_path):
    evil = '<script>alert(1)</script>" onload="alert(2)"&'
    base, other = candidate("base"), candidate(evil, patch=patch(evil, 4), seed=1)
    stage_list = [base, other, *(candidate(f"{evil}{n}", seed=n) for n in range(5))]
    judged = [judge(base, each) for each in stage_list[1:]]
    page = write_report(stage_list, [], tmp_path, title=evil, verdicts=judged).read_text()
    assert "<script" not in page
    assert "alert(1)</script>" not in page
    assert "onload" not in attributes(page)
