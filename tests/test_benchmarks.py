"""The benchmark's limit is a fair one, and its ratios are what they say."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks are not installed

from benchmarks import dynamic_decode, evaluation
from benchmarks.cells import Cell, Measurement
from benchmarks.models import build, remove_bias, step_of
from benchmarks.targets import Target, ratio, spread, verdicts

LENGTH = 64


def without_bias(kind):
    """Stock attention whose bias is all zeros: every token of BLOOM at position 0, T5's table empty."""
    model = build(kind, LENGTH)
    if kind == "t5":
        attention = model.encoder.block[0].layer[0].SelfAttention
        nn.init.zeros_(attention.relative_attention_bias.weight)
    return model


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_the_limit_is_stock_with_a_bias_of_zero(kind, monkeypatch):
    stock, limit = without_bias(kind), build(kind, LENGTH)
    monkeypatch.setattr(
        "transformers.models.bloom.modeling_bloom._get_alibi_slopes",
        lambda heads, device=None: torch.zeros(heads, device=device),
    )
    remove_bias(limit)
    with torch.no_grad():
        expected = step_of(stock, LENGTH, limit=False)()
        torch.testing.assert_close(
            step_of(limit, LENGTH, limit=True)(), expected, rtol=1e-4, atol=1e-5
        )


def test_the_limit_leaves_other_models_of_the_class_alone():
    limit, other = build("bloom", LENGTH), build("bloom", LENGTH)
    with torch.no_grad():
        before = step_of(other, LENGTH, limit=False)()
        remove_bias(limit)
        assert torch.equal(step_of(other, LENGTH, limit=False)(), before)
        assert not torch.equal(step_of(limit, LENGTH, limit=True)(), before)


def results_of(**rounds):
    """Measurements at 2048 and 4096 from `variant_length=[seconds, …, megabytes]`."""
    results = {}
    for name, taken in rounds.items():
        variant, length = name.split("_")
        cell = Cell("bloom", "float32", "forward", int(length), variant)
        *seconds, memory = taken
        results[cell] = Measurement(cell, tuple(seconds), memory)
    return results


RESULTS = results_of(
    eager_2048=[8.0, 6.0, 7.0, 100.0],
    ours_2048=[1.0, 2.0, 1.75, 10.0],
    limit_2048=[1.75, 1.75, 1.75, 8.0],
    ours_4096=[6.0, 20.0],
    limit_4096=[4.0, 20.0],
)
GROUP = ("bloom", "float32", "forward", 2048)


def test_ratios_are_of_medians():
    assert ratio(RESULTS, GROUP, "eager", "ours", "time") == 7.0 / 1.75
    assert ratio(RESULTS, GROUP, "eager", "ours", "memory") == 100.0 / 10.0
    assert ratio(RESULTS, GROUP, "sdpa", "ours", "time") is None


def test_the_spread_is_of_ratios_within_a_round():
    assert spread(RESULTS, GROUP, "eager", "ours") == (3.0, 8.0)


@pytest.mark.parametrize(
    ("quantity", "bound", "measured", "length", "word"),
    [
        ("time", 1.2, 1.5, 4096, "not met"),
        ("time", 1.5, 1.5, 4096, "met"),
        ("memory", 1.3, 1.25, 2048, "met"),
    ],
)
def test_a_target_over_lengths_is_judged_by_its_worst(quantity, bound, measured, length, word):
    target = Target(
        "bloom", "forward", 2048, "ours", "limit", quantity, bound, at_least=False, and_longer=True
    )
    (verdict,) = verdicts(RESULTS, ["float32"], [target])
    assert (verdict.ratio, verdict.length, verdict.word) == (measured, length, word)


def test_a_target_that_was_not_measured_says_so():
    target = Target("bloom", "forward", 8192, "eager", "ours", "time", 6.0, at_least=True)
    (verdict,) = verdicts(RESULTS, ["float32"], [target])
    assert (verdict.ratio, verdict.word) == (None, "not measured")


def test_decoding_is_measured_for_every_method(capsys):
    dynamic_decode.main(["--lengths", "1024", "--rounds", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "1,024" in line]
    assert [row[1] for row in rows] == list(dynamic_decode.METHODS)
    assert all(row[-1] == "prefill" for row in rows[1:])


@pytest.mark.parametrize("protocol", ["yarn-truncate", "yarn-sliding"])
def test_the_loop_and_the_evaluation_measure_the_same(protocol):
    case = evaluation.Case(protocol, (300, 400), 700, 2, 64, 1.0)
    model, plan = evaluation.model_of(case.vocabulary), evaluation.plan_of(case)
    naive, fast = evaluation.naive(model, plan), evaluation.fast(model, plan)
    assert len(fast) == 2
    assert fast == pytest.approx(naive, abs=evaluation.CLOSE)


def test_the_evaluation_is_measured_in_processes_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "Worker", FakeWorker)
    evaluation.main(["--cases", "8 prefixes", "8192 tokens, vocabulary 32000", "--rounds", "1"])
    time, memory = capsys.readouterr().out.splitlines()[-2:]
    # 6 s to 2 s where 4× was asked for, 300 MB to 20 MB where 10× was.
    assert "3.00×" in time
    assert time.endswith("time ≥ 4×  not met")
    assert "15.0×" in memory
    assert memory.endswith("memory ≥ 10×      met")


class FakeWorker:
    """Takes 6 s and 300 MB for the loop, 2 s and 20 MB for ours, and finds the same losses."""

    def __init__(self, module, argument):
        _, self.variant, file = json.loads(argument.removeprefix("--serve="))
        Path(file).write_text("[1.5, 2.5]")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, purpose):
        return (6.0, 300.0) if self.variant == "naive" else (2.0, 20.0)
