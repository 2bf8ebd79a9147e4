"""What the headline answers: which questions there are, and when an answer is a yes or a no."""

import io
from dataclasses import replace

import pytest
from made_evaluations import made_evaluation, made_scores
from rich.console import Console

from ropepatch.evals import headline, print_table


def test_every_task_that_was_asked_is_a_question():
    stage = made_evaluation(tasks=("needle", "vt"), rates=(0.9, 0.9, 0.9, 0.0))
    asked = [(claim.question, claim.verdict) for claim in headline([stage])[1:]]
    assert asked == [
        ("Is needle answered in 1024 tokens?", "no"),
        ("Is vt answered in 1024 tokens?", "no"),
    ]


@pytest.mark.parametrize(
    ("scores", "chance", "verdict"),
    [
        # Nothing is guessed where an answer is generated, so that no interval lies below chance.
        ([0.0] * 4, 0.0, "no"),
        ([1.0, 0.0, 0.0, 0.0], 0.0, "yes"),
        # Of 4 prompts, up to 49 % may be right (Wilson), and a guess is right in 12.5 %.
        ([0.0] * 4, 0.125, "unclear"),
        # One partial score has no interval.
        ([0.5], 0.0, "unclear"),
    ],
)
def test_a_task_is_answered_where_guessing_does_not_explain_it(scores, chance, verdict):
    asked = {1024: made_scores(scores, 1024, chance)}
    claims = headline([replace(made_evaluation(), tasks={"qa_1": asked})])
    assert claims[-1].verdict == verdict


@pytest.mark.parametrize(("documents", "verdict"), [(5, "unclear"), (6, "yes")])
def test_documents_that_agree_by_chance_answer_nothing(documents, verdict):
    # All of 5 documents agree in 1 of 32 draws, of 6 in 1 of 64, which is below 2.5 %.
    losses = (0.0, 0.0, -0.3, -0.3)
    claim = headline([made_evaluation(losses=losses, documents=documents)])[0]
    assert claim.interval.high < 0
    assert claim.verdict == verdict
    assert ("5 documents are too few" in claim.detail) == (verdict == "unclear")


def test_without_a_longer_window_nobody_knows_whether_it_helps():
    stage = replace(made_evaluation(), lengths=(128, 256))
    claim = headline([stage])[0]
    assert (claim.verdict, claim.interval) == ("not measured", None)
    assert claim.detail == "no longer windows than those of 256 tokens were read"


def printed(stage):
    console = Console(width=120, file=io.StringIO())
    print_table([stage], console=console)
    return console.file.getvalue()


def test_where_no_task_was_asked_there_is_no_question_and_no_table_of_one():
    # As of `ropepatch eval MODEL --tasks ppl`.
    stage = made_evaluation(tasks=())
    assert len(headline([stage])) == 1
    assert "Retrieval" not in printed(stage)
    assert "not measured" not in printed(stage)


def test_a_task_that_could_not_be_asked_is_said_with_its_reason():
    reason = "the tokenizer reserves 0 keys"
    stage = made_evaluation(tasks=(), configuration={"targets": 8, "not_asked": {"kv": reason}})
    claim = headline([stage])[-1]
    assert (claim.verdict, claim.detail) == ("not measured", reason)
    assert reason in printed(stage)
