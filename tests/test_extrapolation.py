"""The study of training short and testing long: what is measured, and what cannot be."""

import math

import numpy as np
import pytest
import torch
from recipe_scripts import RECIPES, load_script
from tiny_models import TRAINED_LENGTH, logits, tiny_model, token_ids

from ropepatch import patch_model
from ropepatch.evals.windows import Windows

LENGTHS = (TRAINED_LENGTH, 2 * TRAINED_LENGTH, 4 * TRAINED_LENGTH)
TARGETS = 8


@pytest.fixture
def study(monkeypatch):
    script = load_script("extrapolation")
    monkeypatch.setattr(script, "LENGTHS", LENGTHS)
    monkeypatch.setattr(script, "TARGETS", TARGETS)
    monkeypatch.setattr(script, "TRAINED", TRAINED_LENGTH)
    return script


@pytest.fixture
def windows():
    return Windows(token_ids(3, LENGTHS[-1]), np.array([0, 0, 1]), ("a", "b"), (), None)


def losses(model, ids):
    """Of every token but the first, (rows, tokens − 1)."""
    chances = logits(model, ids).double().log_softmax(-1)[:, :-1]
    return -chances.gather(-1, ids[:, 1:, None])[..., 0]


def test_every_recipe_of_the_directory_is_in_the_study(study):
    assert set(study.MODELS) == {path.stem for path in study.RECIPES.glob("*.yaml")}
    assert study.RECIPES.parent == RECIPES


def test_targets_are_the_same_tokens_and_blocks_score_every_token(study, windows):
    model = tiny_model("llama")
    found = study.read(study.measure(model, windows))
    for length in LENGTHS:
        suffix = losses(model, windows.input_ids[:, -length:])[:, -TARGETS:]
        np.testing.assert_allclose(found.targets[length], suffix.mean(1), atol=1e-5)
        blocks = [losses(model, block) for block in windows.input_ids.split(length, 1)]
        np.testing.assert_allclose(found.blocks[length], torch.cat(blocks, 1).mean(1), atol=1e-5)
    np.testing.assert_allclose(found.positions, losses(model, windows.input_ids), atol=1e-5)


def test_a_learned_table_has_no_losses_past_its_end(study, windows):
    model = patch_model(tiny_model("llama"), "learned", factor=2)
    found = study.read(study.measure(model, windows))
    assert [*found.targets] == [*found.blocks] == [TRAINED_LENGTH, 2 * TRAINED_LENGTH]
    assert found.positions.shape == (3, 2 * TRAINED_LENGTH - 1)
    *_, row = study.table({"learned": found}).splitlines()
    assert row.split(" | ")[3] == "–"


def test_a_change_is_paired_by_window(study):
    # Windows differ by more than lengths do; each window's own change is 1.
    short, documents = np.array([1.0, 5.0, 9.0]), np.array([0, 1, 2])
    by_length = {TRAINED_LENGTH: short, 2 * TRAINED_LENGTH: short + 1}
    found = study.Scores(by_length, by_length, np.empty((3, 0)), documents)
    assert study.change(by_length, 2 * TRAINED_LENGTH, found) == "+1.00 [+1.00,+1.00]"


def test_a_picture_has_a_line_for_each_model_as_far_as_it_goes(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "MODELS", {"learned": "#000000", "rotary": "#0072b2"})
    drawn = []
    monkeypatch.setattr(study.Figure, "savefig", lambda figure, path: drawn.append(figure))
    documents = np.array([0, 1])
    whole = dict.fromkeys(LENGTHS, np.array([2.0, 4.0]))
    part = {LENGTHS[0]: whole[LENGTHS[0]]}
    scores = {
        "learned": study.Scores(part, part, np.full((2, 31), 3.0), documents),
        "rotary": study.Scores(whole, whole, np.full((2, 127), 3.0), documents),
    }
    study.draw(scores, tmp_path / "drawn.png")
    first, second, third = drawn[0].axes
    for axes in (first, second):
        learned, rotary = axes.get_lines()[:2]
        assert learned.get_xydata().tolist() == [[32, 3]]
        assert rotary.get_xydata().tolist() == [[32, 3], [64, 3], [128, 3]]
    middles = third.get_lines()[1].get_xdata()
    assert [*middles[:2]] == [math.sqrt(1 * 16), math.sqrt(16 * 32)]
