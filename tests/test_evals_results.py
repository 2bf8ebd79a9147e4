"""results.json has the shape that lm-evaluation-harness writes, and real standard errors."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import YARN, made_evaluation

from ropepatch.evals.results import write_results
from ropepatch.evals.verdict import judge

#: Of results_*.json as lm-evaluation-harness 0.4.13 writes it.
TOP_LEVEL = {
    "results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "date",
    "git_hash", "transformers_version",
}  # fmt: skip
BASE = made_evaluation("base", losses=(0.0, 0.0, 0.5, 1.0), rates=(0.9, 0.9, 0.4, 0.1))
YARNED = made_evaluation("yarn ×4", seed=1, patch=YARN)


@pytest.fixture
def one(tmp_path):
    return json.loads(write_results([BASE], [], tmp_path).read_text())


@pytest.fixture
def two(tmp_path):
    path = write_results([BASE, YARNED], [judge(BASE, YARNED)], tmp_path)
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_has_the_harness_keys(one):
    assert one.keys() >= TOP_LEVEL
    tasks = set(one["results"])
    assert tasks == {"fixed_target_loss", "kv"}
    for key in ("configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert set(one[key]) == tasks
    assert one["n-samples"]["kv"] == {"original": 256, "effective": 256}


def test_a_score_has_its_value_and_standard_error_by_length(one):
    rate = float(BASE.tasks["kv"][512].scores.mean())
    found = one["results"]["kv"]
    assert found["alias"] == "kv"
    assert found["512,none"] == rate
    # Wilson's half width over 1.96, which nears the binomial's.
    assert found["512_stderr,none"] == pytest.approx(math.sqrt(rate * (1 - rate) / 64), rel=0.05)


def test_a_loss_has_the_standard_error_of_documents(one):
    by_document = BASE.target_means(256).reshape(-1, 2).mean(axis=1)
    found = one["results"]["fixed_target_loss"]
    assert found["256,none"] == pytest.approx(by_document.mean())
    expected = by_document.std() / math.sqrt(len(by_document))
    assert found["256_stderr,none"] == pytest.approx(expected, rel=0.06)
    assert one["higher_is_better"]["fixed_target_loss"]["256"] is False
    assert one["higher_is_better"]["kv"]["256"] is True


def test_several_models_have_tasks_of_their_own(two):
    assert set(two["results"]) == {
        "base: fixed_target_loss", "base: kv", "yarn ×4: fixed_target_loss", "yarn ×4: kv",
    }  # fmt: skip
    assert two["configs"]["yarn ×4: kv"]["patch"] == YARN
    (verdict,) = two["verdicts"]
    assert (verdict["candidate"], verdict["verdict"]) == ("yarn ×4", "improved")
    assert verdict["effective_length"]["value"] == judge(BASE, YARNED).relative.value
    assert set(verdict["extension_gain"]) == {"512", "1024"}


def test_what_was_not_measured_or_is_no_number_is_no_number(tmp_path):
    broken = {n: np.full((40, 8), np.inf, np.float32) for n in BASE.lengths}
    stage = replace(BASE, tasks={"kv": {128: BASE.tasks["kv"][128]}}, target_losses=broken)
    found = json.loads(write_results([stage], [], tmp_path).read_text())["results"]
    assert "256,none" not in found["kv"]
    assert found["fixed_target_loss"]["256,none"] is None
    assert found["fixed_target_loss"]["256_stderr,none"] == "N/A"
