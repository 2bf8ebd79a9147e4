"""The report: self-contained, complete, whole on disk, and plain in what it says."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from ropepatch.errors import RopepatchError
from ropepatch.evals import Check, compare, headline, print_table, write_report
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.losses import bin_edges
from ropepatch.evals.tasks.scores import TaskScores

LENGTHS = (128, 256, 512, 1024)
YARN = {"method": "yarn", "options": {"factor": 4.0}, "max_position_embeddings": 1024}


def evaluation(label, losses, accuracies, patch=None, *, documents=12):
    """A made-up stage: losses by length and per document, retrieval as counts of 64."""
    rng = np.random.default_rng(0)
    base = rng.normal(3.0, 0.5, size=(documents, 1))
    jitter = np.random.default_rng(len(label)).normal(0.0, 0.01, size=(documents, 64))
    return Evaluation(
        label=label,
        lengths=LENGTHS,
        trained_length=256,
        edges=bin_edges(LENGTHS),
        documents=np.arange(documents),
        target_losses={
            length: (base + jitter + loss).astype(np.float32)
            for length, loss in zip(LENGTHS, losses, strict=True)
        },
        position_losses=np.repeat((base + losses[1]).astype(np.float32), 1023, axis=1),
        tasks={
            "kv": {
                length: answered(right) for length, right in zip(LENGTHS, accuracies, strict=False)
            }
        },
        protocol="same",
        configuration={"patch": patch, "targets": 64, "pairs": 8, "windows": 12, "seed": 0},
    )


def answered(right):
    places = np.arange(64.0)
    return TaskScores((places < right) * 1.0, None, np.full(64, np.nan), places * 4, 0.125, "same")


UNPATCHED = evaluation("unpatched", [0.05, 0.0, 0.4, 0.9], [64, 63, 40, 8])
TUNED = evaluation("YaRN ×4, fine-tuned", [0.05, 0.01, -0.02, -0.05], [64, 64, 64, 63], YARN)
CHECK = Check("Does it reload?", True, "largest difference of logits 0.0")
STAGES = [UNPATCHED, TUNED]


class Resources(HTMLParser):
    """Collects every address that a page would load or link, and its scripts."""

    def __init__(self):
        super().__init__()
        self.addresses = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = {"src", "href", "xlink:href", "data", "srcset", "poster", "action"}
        self.addresses += [value for name, value in attrs if name in names]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "new"
    write_report(STAGES, [compare(*STAGES)], directory, title="tiny <b>&", checks=[CHECK])
    return directory


@pytest.fixture(scope="module")
def page(directory):
    return (directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def numbers(directory):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((directory / "report.json").read_text(), parse_constant=refuse)


def test_page_loads_nothing_from_elsewhere(page):
    resources = Resources()
    resources.feed(page)
    assert all(address.startswith("#") for address in resources.addresses)
    assert "script" not in resources.tags
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_page_holds_every_figure_with_labelled_axes(page):
    assert page.count("<svg role=") == 4
    for label in ("nats per token", "window, tokens", "right answers, share", "chance 0.125"):
        assert label in page
    assert page.count("trained to 256") == 4


def test_ids_of_figures_are_unique_on_the_page(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0


def test_figures_take_their_colours_from_the_page(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--ink)" in figures
    assert "var(--series-1)" in figures
    assert not re.search(r"(stroke|fill): #", figures)
    assert "prefers-color-scheme: dark" in page


def test_stages_differ_in_marker_and_dashes_too(page):
    figure = re.search(r"<svg.*?</svg>", page, flags=re.DOTALL)[0]
    dashed = re.findall(
        r'style="fill: none; stroke-dasharray[^"]*stroke: var\(--series-1\)', figure
    )
    assert dashed
    assert not re.search(r'style="fill: none; stroke-dasharray[^"]*var\(--series-0\)', figure)


def test_text_of_the_caller_is_escaped(page):
    assert "<title>tiny &lt;b&gt;&amp;</title>" in page


def test_label_with_markup_does_not_become_markup(tmp_path):
    stage = replace(UNPATCHED, label="<script>alert(1)</script>")
    page = write_report([stage], [], tmp_path, title="t").read_text(encoding="utf-8")
    assert "<script" not in page


def test_json_holds_every_number_with_its_interval(numbers):
    stage = numbers["stages"][1]
    entry = stage["fixed_target_loss"][3]
    expected = TUNED.target_loss(1024)
    assert entry["length"] == 1024
    assert entry["loss"] == {"value": expected.value, "low": expected.low, "high": expected.high}
    asked = stage["tasks"]["kv"][3]
    assert (asked["score"]["value"], asked["prompts"], asked["chance"]) == (63 / 64, 64, 0.125)
    assert stage["configuration"]["patch"] == YARN
    assert numbers["comparisons"][0]["after"] == "YaRN ×4, fine-tuned"
    assert numbers["extended_length"] == 1024


def test_page_and_json_say_the_same(page, numbers):
    for stage in numbers["stages"]:
        for entry in stage["fixed_target_loss"]:
            assert f"{entry['loss']['value']:.3f}" in page


def test_headline_answers_the_four_questions(numbers):
    verdicts = [claim["verdict"] for claim in numbers["claims"]]
    assert verdicts == ["yes", "yes", "yes", "yes"]
    helps = numbers["claims"][0]["number"]
    assert helps["value"] == pytest.approx(-0.06, abs=1e-6)
    assert helps["high"] < 0


@pytest.mark.parametrize(
    ("loss", "right", "price", "verdicts"),
    [
        (-0.05, 63, 0.01, ["yes", "yes", "yes"]),
        (0.30, 1, 0.20, ["no", "no", "no"]),
        (-0.05, 10, 0.01, ["yes", "yes", "unclear"]),
    ],
)
def test_verdicts_follow_the_intervals(loss, right, price, verdicts):
    after = evaluation("after", [0.0, price, loss, loss + price], [64, 64, 64, right], YARN)
    claims = headline([UNPATCHED, after])
    assert [claim.verdict for claim in claims] == verdicts


def test_failed_and_skipped_checks_are_said_plainly():
    checks = [Check("a", False, "differs by 0.3"), Check("b", None, "not run")]
    assert [claim.verdict for claim in headline(STAGES, checks)[-2:]] == ["no", "not measured"]


def test_missing_cells_are_shown_as_missing(tmp_path):
    partial = replace(TUNED, tasks={"kv": {128: TUNED.tasks["kv"][128]}})
    without = replace(UNPATCHED, tasks={})
    page = write_report([without, partial], [], tmp_path, title="t").read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert page.count("<td>–<") == 7
    assert numbers["stages"][0]["tasks"] == {}
    assert numbers["stages"][1]["tasks"]["kv"][1]["score"] is None
    assert numbers["claims"][2]["verdict"] == "not measured"


def test_without_any_retrieval_there_is_no_figure_of_it(tmp_path):
    page = write_report([replace(UNPATCHED, tasks={})], [], tmp_path, title="t").read_text()
    assert page.count("<svg role=") == 3


def test_one_document_gives_values_without_intervals(tmp_path):
    alone = evaluation("alone", [0.0, 0.0, 0.1, 0.2], [64, 64, 64, 64], documents=1)
    page = write_report([alone], [], tmp_path, title="t").read_text(encoding="utf-8")
    assert "[no interval]" in page
    assert headline([alone])[0].verdict == "unclear"
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["stages"][0]["fixed_target_loss"][0]["loss"]["low"] is None


def test_losses_that_are_not_finite_are_named(tmp_path):
    broken = replace(
        TUNED, target_losses={n: np.full((12, 64), np.nan, np.float32) for n in LENGTHS}
    )
    page = write_report([broken], [], tmp_path, title="t").read_text(encoding="utf-8")
    assert "not finite" in page
    assert headline([broken])[0].verdict == "unclear"


def test_same_stages_give_the_same_page(directory, tmp_path):
    again = write_report(STAGES, [compare(*STAGES)], tmp_path, title="tiny <b>&", checks=[CHECK])
    assert again.read_bytes() == (directory / "report.html").read_bytes()


def test_failed_write_leaves_the_old_report_whole(tmp_path, monkeypatch):
    write_report(STAGES, [], tmp_path, title="old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RopepatchError, match="No space left on device"):
        write_report(STAGES, [], tmp_path, title="new")
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_directory_that_cannot_be_made_gives_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RopepatchError, match="the report cannot be written to"):
        write_report(STAGES, [], tmp_path / "file" / "out", title="t")


def test_terminal_shows_the_same_numbers_within_eighty_columns():
    console = Console(width=80, file=io.StringIO())
    print_table(STAGES, [compare(*STAGES)], checks=[CHECK], console=console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert f"{TUNED.target_loss(1024).value:.3f} [" in text
    assert "chance 0.125" in text
    assert "Does it reload?" in text


def test_report_without_stages_is_refused(tmp_path):
    with pytest.raises(RopepatchError, match="at least one evaluated stage"):
        write_report([], [], tmp_path, title="t")
