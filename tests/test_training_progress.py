"""What a person reads while a run goes on."""

import json
from pathlib import Path

import pytest
from tiny_runs import pretraining_tree
from transformers.utils import logging

from ropepatch.terminal import ShareProgress, StageProgress, duration, quiet_transformers
from ropepatch.training.progress import (
    TerminalProgress,
    TrainingProgress,
    forget_metrics_after,
    progress_status,
)
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_naturally(seconds, text):
    assert duration(seconds) == text


def test_the_status_has_units():
    progress = TrainingProgress(
        step=5, max_steps=9, loss=2.3456, tokens_per_second=12100.4, seconds_left=61
    )
    assert progress_status(progress) == "loss 2.346  12,100 tokens/s  1 min 01 s left"


def test_the_first_step_promises_nothing():
    progress = TrainingProgress(
        step=1, max_steps=9, loss=None, tokens_per_second=None, seconds_left=None
    )
    assert progress_status(progress) == ""


def test_the_last_loss_is_that_of_the_last_steps(tmp_path):
    tree = pretraining_tree(tmp_path)
    tree["training"] |= {"max_steps": 3, "logging_steps": 1}
    every = parse_recipe(tree)
    train(every)
    lines = (Path(every.output_dir) / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    tree["training"]["logging_steps"] = 10
    tree["output_dir"] = str(tmp_path / "seldom")
    result = train(parse_recipe(tree))
    # The first step is logged by itself, then the mean of those after it.
    assert result.loss == pytest.approx(sum(losses[1:]) / 2, abs=1e-4)


def test_a_step_is_told_with_its_own_loss(tmp_path):
    told = []
    tree = pretraining_tree(tmp_path)
    tree["training"] |= {"max_steps": 4, "logging_steps": 2}
    recipe = parse_recipe(tree)
    train(recipe, told.append)
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines()
    losses = {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}
    assert [step.step for step in told] == [1, 2, 3, 4]
    assert {step.step: step.loss for step in told if step.step in losses} == losses


def test_where_there_is_no_terminal_the_first_and_last_steps_are_lines(capsys):
    with TerminalProgress("run") as progress:
        for step in range(1, 10):
            progress(
                TrainingProgress(
                    step=step, max_steps=9, loss=1.0, tokens_per_second=None, seconds_left=0.0
                )
            )
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 1/9  loss 1.000  0 s left", "step 9/9  loss 1.000  0 s left"]


def test_stages_are_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    with StageProgress("all", [("read", 10), ("train", 30)]) as progress:
        with progress.stage("first") as done:
            done(0.5)
        with progress.stage("second"):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "first: 0%  0 s elapsed, about 40 s left",
        "second: 25%  0 s elapsed, about 30 s left",
        "second: 100%  0 s elapsed, about 0 s left",
    ]


STAGES = [("read", 20.0), ("read", 20.0), ("train", 80.0), ("read", 20.0)]


@pytest.mark.parametrize("preparation", [0.0, 6.0])
@pytest.mark.parametrize("slower", [{"read": 1.0, "train": 1.25}, {"read": 8.0, "train": 10.0}])
def test_the_time_left_is_right_within_a_third_from_20_seconds_on(monkeypatch, preparation, slower):
    """On a machine whose stages take `slower` times what was expected, of which some is preparation."""
    clock = {"now": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])
    estimates = []
    with StageProgress("all", STAGES) as progress:
        for kind, expected in STAGES:
            with progress.stage(kind) as done:
                clock["now"] += preparation
                for step in range(1, 101):
                    clock["now"] += expected * slower[kind] / 100
                    done(step / 100)
                    estimates.append((clock["now"], progress.seconds_left()))
    end = clock["now"]
    late = [(end - now, left) for now, left in estimates if now > 20 and end - now > 10]
    assert late
    assert [pair for pair in late if abs(pair[1] - pair[0]) > pair[0] / 3] == []


def test_each_kind_of_stage_has_its_own_pace(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])
    with StageProgress("all", STAGES) as progress, progress.stage("first") as done:
        assert progress.seconds_left() == 140
        done(0.1)
        clock["now"] = 2.4  # a pace of 1.2, which says nothing of other kinds
        done(0.2)
        assert progress.seconds_left() == pytest.approx(1.2 * 56 + 80)
        clock["now"] = 12.0  # 0.4 of 20 expected seconds took 12: a pace of 1.5
        done(0.5)
        assert progress.seconds_left() == pytest.approx(1.5 * 130)


def test_what_comes_before_the_work_does_not_slow_its_pace(capsys, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock["now"])
    with ShareProgress("plan") as progress:
        clock["now"] = 100.0
        progress(0.0)
        clock["now"], progress.title = 110.0, "measure"
        progress(0.25)  # 10 s for a quarter: 30 s for the rest
    assert capsys.readouterr().err.splitlines()[-1] == (
        "measure: 25%  1 min 50 s elapsed, about 30 s left"
    )


def test_transformers_speaks_again_after_a_run_that_failed():
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        1 / 0  # noqa: B018
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_metrics_of_steps_that_come_again_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"step": 4, "lo']))
    forget_metrics_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_run_without_metrics_has_none_to_forget(tmp_path):
    forget_metrics_after(tmp_path / "metrics.jsonl", 0)
    assert list(tmp_path.iterdir()) == []
