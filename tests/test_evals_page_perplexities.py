"""Perplexities in the report and in results.json: of every stage, and paired with the base's."""

import json
import math
from dataclasses import replace

import pytest
from made_evaluations import made_evaluation, made_perplexity

from ropepatch.evals import write_report
from ropepatch.evals.page_perplexities import perplexity_tables
from ropepatch.evals.results import write_results
from ropepatch.evals.verdict import judge


def stage(label, changes, seed):
    """Three documents, the last of which is too short for 512 tokens, and a key token in each."""
    return replace(
        made_evaluation(label, seed=seed),
        perplexities=[
            made_perplexity("yarn-truncate", 256, [300.0, 250.0, 400.0]),
            made_perplexity("yarn-truncate", 512, [200.0 + changes, 250.0 + 3 * changes, None]),
            made_perplexity("yarn-truncate", 512, [100.0, 50.0, None], after=256),
            made_perplexity("long-ppl", 256, [1.0, 2.0, 3.0], tokens=1),
        ],
    )


BASE, PATCHED = stage("base", 0.0, 0), stage("yarn", -10.0, 1)


@pytest.fixture(scope="module")
def tables():
    return {table.title: table for table in perplexity_tables([BASE, PATCHED])}


def values(table):
    return [(name, [cell.value for cell in cells]) for name, cells in table.rows]


def test_every_protocol_has_tables_of_its_own(tables):
    difference = "nats per token, minus base, paired"
    assert list(tables) == [
        f"{what}{protocol}{after}"
        for protocol in ("yarn-truncate", "long-ppl")
        for what, after in [
            ("Perplexity by ", ""),
            ("Bits per byte by ", ""),
            ("Loss by ", f", {difference}"),
            ("What ", " reads"),
        ]
    ]


def test_columns_are_windows_and_what_each_adds(tables):
    assert tables["Perplexity by yarn-truncate"].columns == ("256 (1×)", "512 (2×)", "256–511")
    assert tables["Perplexity by long-ppl"].columns == ("256 (1×)",)


def test_perplexity_and_bits_are_of_all_documents_that_are_long_enough(tables):
    # exp(950/300), exp(450/200), exp(150/200); of the patched model exp(410/200).
    expected = [[math.exp(19 / 6), math.exp(2.25), math.exp(0.75)]]
    expected.append([expected[0][0], math.exp(2.05), expected[0][2]])
    shown = [[f"{value:.3f}" for value in row] for row in expected]
    assert values(tables["Perplexity by yarn-truncate"]) == [
        ("base", shown[0]),
        ("yarn", shown[1]),
    ]
    bits = tables["Bits per byte by yarn-truncate"].rows[0][1][1]
    assert bits.value == f"{450 / 400 / math.log(2):.3f}"


def test_differences_are_paired_by_document(tables):
    (name, cells), *more = tables["Loss by yarn-truncate, nats per token, minus base, paired"].rows
    assert (name, more) == ("yarn", [])
    # 10 and 30 nats of 100 tokens each: two documents drawn twice give −0.1, −0.2 or −0.3.
    assert (cells[1].value, cells[1].ends) == ("−0.200", "[−0.300, −0.100]")
    assert cells[0].value == "+0.000"


def test_what_is_read_is_said_once(tables):
    assert values(tables["What yarn-truncate reads"]) == [
        ("documents", ["3 of 3", "2 of 3", "2 of 3"]),
        ("tokens scored", ["300", "200", "200"]),
        ("tokens before each", ["50", "50", "50"]),
    ]


def test_one_stage_has_no_differences_and_none_without_perplexity_has_tables():
    assert perplexity_tables([made_evaluation()]) == []
    assert all(not table.rows for table in perplexity_tables([BASE]) if "minus" in table.title)


def test_a_stage_that_was_not_measured_so_has_dashes():
    without = made_evaluation("without")
    table = perplexity_tables([BASE, without])[0]
    assert values(table)[1] == ("without", ["–", "–", "–"])


def test_files_pair_perplexities_with_the_base(tmp_path):
    verdicts = [judge(BASE, PATCHED)]
    page = write_report([BASE, PATCHED], [], tmp_path, title="t", verdicts=verdicts).read_text()
    write_results([BASE, PATCHED], verdicts, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    by_stage = {each["label"]: each["perplexities"] for each in report["stages"]}
    assert by_stage == results["perplexities"]
    assert {each["minus_base"] for each in by_stage["base"]} == {None}
    found = by_stage["yarn"][1]
    assert (found["protocol"], found["length"], found["after"]) == ("yarn-truncate", 512, 0)
    assert found["minus_base"] == pytest.approx({"value": -0.2, "low": -0.3, "high": -0.1})
    assert "Perplexity by long-ppl" in page
