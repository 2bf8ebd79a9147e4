"""Verdicts and perplexities as the terminal shows them."""

import io
from dataclasses import replace

import pytest
from made_evaluations import YARN, made_evaluation, made_perplexity
from rich.console import Console

from ropepatch.evals.perplexity_table import print_perplexities
from ropepatch.evals.verdict import judge
from ropepatch.evals.verdict_table import print_verdicts

BASE = made_evaluation("base", (0.0, 0.0, 0.5, 1.0), (1.0, 1.0, 0.4, 0.1))
YARNED = made_evaluation("yarn ×4", (0.0, 0.0, -0.1, -0.2), (1.0,) * 4, seed=1, patch=YARN)
SHORT = {**YARN, "max_position_embeddings": 512}


@pytest.fixture
def console():
    return Console(width=100, file=io.StringIO())


def printed(console, *stages):
    print_verdicts(stages, [judge(stages[0], stage) for stage in stages[1:]], console)
    return console.file.getvalue()


def test_a_candidate_is_told_by_its_verdict_and_where_its_gain_was_measured(console):
    text = printed(console, BASE, YARNED)
    gain = YARNED.target_losses[1024].mean(dtype=float) - BASE.target_losses[256].mean(dtype=float)
    table, _, reasons = text.partition("yarn ×4: ")
    assert f"{gain:+.3f}".replace("-", "−") in table
    assert "in 1024" in table
    assert "≥ 1024" in table
    assert reasons.startswith("improved")
    assert "up to 0.03 counts as kept" in text
    assert "guessing scores: retrieval 0.125" in text


def test_a_candidate_is_shown_at_the_length_that_it_is_made_for(console):
    stage = replace(YARNED, configuration={"patch": SHORT})
    table = printed(console, BASE, stage).partition("yarn ×4: ")[0]
    gain = YARNED.target_losses[512].mean(dtype=float) - BASE.target_losses[256].mean(dtype=float)
    assert f"{gain:+.3f}".replace("-", "−") in table
    assert "in 512" in table


def test_several_tasks_are_shown_by_their_plain_mean(console):
    # All right in one task, none in the other.
    none = made_evaluation(rates=(0.0,) * 4).tasks["kv"]
    tasks = {"needle": YARNED.tasks["kv"], "vt": none}
    text = printed(console, *(replace(stage, tasks=tasks) for stage in (BASE, YARNED)))
    table = text.partition("yarn ×4: ")[0]
    assert table.count("2 tasks") == 2
    assert table.count("0.50\n") == 2


def test_what_cannot_be_measured_is_a_dash_with_its_reason(console):
    text = printed(console, replace(BASE, tasks={}), replace(YARNED, tasks={}))
    assert "not measurable for yarn ×4: no task was asked at every length" in text


def test_perplexities_are_said_by_documents_and_against_the_base(console):
    def stage(label, nats):
        found = [
            made_perplexity("yarn-truncate", 256, [nats, nats, None]),
            made_perplexity("yarn-truncate", 512, [nats, None, None], after=256),
        ]
        return replace(BASE, label=label, perplexities=found)

    print_perplexities([stage("base", 200.0), stage("yarn", 190.0)], console)
    base, yarn = console.file.getvalue().split("Perplexity of yarn by yarn-truncate")
    # e² of 200 nats on 100 tokens; each token has 50 before it.
    assert "7.389" in base
    assert "2 of 3" in base
    assert "256–511" in base
    # 10 nats less on 100 tokens.
    assert "−0.100" in yarn
