"""What `ropepatch train` tells of damaged checkpoints and of its evaluation."""

import pytest
import yaml
from tiny_runs import pretraining_tree, with_evaluation

from ropepatch.cli import USER_ERROR, main


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    tree = with_evaluation(pretraining_tree(tmp_path, max_steps=2, save_steps=1), tmp_path)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_a_run_ends_with_its_table_and_report(recipe, tmp_path, capsys):
    assert main(["train", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "Loss of the same last 16 tokens, nats per token [95 %], trained to 32" in said
    assert "2 steps, last loss" in said
    report = tmp_path / "run" / "evaluation" / "report.html"
    assert str(report) in said
    assert report.exists()


def test_a_finished_run_only_says_where_its_results_are(recipe, tmp_path, capsys):
    main(["train", str(recipe)])
    capsys.readouterr()
    assert main(["train", str(recipe)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"this recipe was finished before: {tmp_path / 'run' / 'final'}",
        f"report: {tmp_path / 'run' / 'evaluation' / 'report.html'}",
    ]


def test_a_damaged_checkpoint_is_told_in_one_line(recipe, tmp_path, capsys):
    main(["train", str(recipe), "evaluation=null"])
    run = tmp_path / "run"
    (run / "final").rename(tmp_path / "elsewhere")
    (run / "checkpoint-2" / "rng_state.pth").write_bytes(b"")
    capsys.readouterr()
    assert main(["train", str(recipe), "evaluation=null"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("ropepatch: ")] == [
        f"ropepatch: warning: {run}: checkpoint-2 is not whole (rng_state.pth is damaged), kept as "
        "damaged-checkpoint-2; the run goes on from checkpoint-1"
    ]


def test_own_text_without_other_text_to_measure_on_is_refused(recipe, capsys):
    assert main(["train", str(recipe), "evaluation.source=null"]) == USER_ERROR
    assert "give evaluation.source, or evaluation: null" in capsys.readouterr().err


def test_a_run_that_diverges_is_a_message_and_no_traceback(recipe, capsys):
    overrides = ["training.learning_rate=1e20", "training.max_steps=50"]
    assert main(["train", str(recipe), *overrides]) == USER_ERROR
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ropepatch: error: the ")
    assert "lower training.learning_rate" in error
