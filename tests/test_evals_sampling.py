"""Counts from a pilot, against the formula by hand."""

from itertools import pairwise

import numpy as np
import pytest
from made_evaluations import YARN, made_evaluation

from ropepatch.corpus import Document, train_tokenizer
from ropepatch.errors import ConfigError
from ropepatch.evals.sampling import (
    MOST_PROMPTS,
    Counts,
    counts_for_time,
    counts_for_width,
    parse_time,
)
from ropepatch.evals.verdict import extension_gain
from ropepatch.evals.windows import held_out_windows, window_rooms


def test_prompts_follow_the_binomial_variance():
    # 64 prompts, all right: (64 + 2)/(64 + 4) · 2/68 · 1.96² / 0.05² = 43.9.
    sure = made_evaluation(rates=(1.0,) * 4)
    assert counts_for_width([sure], 0.05, 500).prompts == 44
    # Near one half: 0.25 · 1.96² / 0.02² = 2401.
    even = made_evaluation(rates=(0.5,) * 4)
    assert counts_for_width([even], 0.02, 500).prompts == pytest.approx(2401, abs=5)


def test_four_times_the_windows_for_half_the_width():
    base, other = (made_evaluation(seed=n, noise=0.1, patch=YARN) for n in (0, 1))
    widths = [extension_gain(base, other, n) for n in (256, 512, 1024)]
    widest = max((each.high - each.low) / 2 for each in widths)
    counts = counts_for_width([base, other], widest, 10_000)
    assert counts.windows == len(base.documents)
    half = counts_for_width([base, other], widest / 2, 10_000)
    assert half.windows == 4 * len(base.documents)


def test_the_candidate_that_differs_most_decides_wherever_it_stands():
    base, calm, wild = (
        made_evaluation(seed=n, noise=noise) for n, noise in [(0, 0.02), (1, 0.02), (2, 0.2)]
    )
    alone = counts_for_width([base, wild], 0.02, 10_000).windows
    assert counts_for_width([base, calm], 0.02, 10_000).windows < alone / 10
    for others in ([calm, wild], [wild, calm]):
        assert counts_for_width([base, *others], 0.02, 10_000).windows == alone


def test_lengths_that_the_candidate_is_not_made_for_do_not_count():
    base = made_evaluation(seed=0, noise=0.02)
    wild = made_evaluation(seed=1, noise=0.02, patch={**YARN, "max_position_embeddings": 512})
    losses = wild.target_losses[1024] * np.linspace(0.1, 3, 40, dtype=np.float32)[:, None]
    wild.target_losses[1024] = losses
    assert counts_for_width([base, wild], 0.02, 10_000).windows < 100


def test_counts_stay_within_what_there_is():
    wide = made_evaluation(noise=3.0, rates=(0.5,) * 4)
    assert counts_for_width([wide], 0.001, 312) == Counts(312, MOST_PROMPTS)
    alone = made_evaluation(documents=1)
    assert counts_for_width([alone], 0.5, 40).windows == 40


@pytest.mark.parametrize("half", [0.0, -0.1, 1.0])
def test_a_width_that_is_none_is_refused(half):
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        counts_for_width([made_evaluation()], half, 10)


def test_counts_fill_the_time_that_is_left():
    # 20 s are spent; of 580 s, 1.25 s for each window and prompt of all models: 464.
    assert counts_for_time(600, 1.25, 20, 1000) == Counts(464, 464)
    assert counts_for_time(600, 1.25, 20, 100) == Counts(100, 464)


def test_a_budget_below_the_least_is_refused_with_what_is_needed():
    # 10 s before, and 8 of each at 1.25 s.
    with pytest.raises(ConfigError, match="take about 20s"):
        counts_for_time(15, 1.25, 10, 1000)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "0s", "-5m", "10 min"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match=r"write 90s, 10m or 1\.5h"):
        parse_time(text)


def test_windows_of_a_smaller_count_are_among_those_of_a_larger():
    rng = np.random.default_rng(0)
    words = ["def", "return", "self", "value", "import"]
    documents = [
        Document(f"doc{n}", " ".join(rng.choice(words, size=400 + 37 * n))) for n in range(3)
    ]
    tokenizer = train_tokenizer(documents, vocab_size=300, keys=0, values=0)

    def windows(count):
        cut = held_out_windows(documents, tokenizer, longest=64, count=count, targets=16)
        return {row.tobytes() for row in cut.input_ids.numpy()}

    room = sum(window_rooms(documents, tokenizer, [64], 16)[64])
    sizes = [1, 2, 5, 12, room]
    cut = [windows(count) for count in sizes]
    assert [len(some) for some in cut] == sizes
    for few, many in pairwise(cut):
        assert few < many
