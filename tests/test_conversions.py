"""The table of conversions: what is measured of whom, and where a value counts as far."""

import numpy as np
import pytest
from recipe_scripts import RECIPES, load_script

from ropepatch.checkpoint.opening import open_tokenizer
from ropepatch.corpus import load_documents
from ropepatch.evals import plan_evaluation

SOURCE = str(RECIPES.parent / "ropepatch")


@pytest.fixture
def conversions(monkeypatch):
    script = load_script("conversions")
    monkeypatch.setattr(script, "LENGTHS", (256, 512, 1024))
    return script


def made_up(script, **values):
    """Losses that rise by 1 with each length, in windows that differ by more; all values found."""
    losses = {n: np.array([1.0, 5.0, 9.0]) + step for step, n in enumerate(script.LENGTHS)}
    fields = {
        "losses": losses,
        "found": {n: np.ones(4) for n in script.LENGTHS},
        "distances": {n: np.array([100.0, 1768, 1769, 4000]) for n in script.LENGTHS},
        "documents": np.array([0, 1, 2]),
        "untrained": np.array([]),
    }
    return script.Scores(**fields | values)


def test_every_recipe_of_the_directory_is_in_the_table(conversions):
    named = {recipe for recipe, *_ in filter(None, conversions.MODELS.values())}
    here = {f"convert/{path.stem}" for path in (RECIPES / "convert").glob("*.yaml")}
    assert {recipe for recipe in named if recipe.startswith("convert/")} == here
    assert all((RECIPES / f"{recipe}.yaml").exists() for recipe in named)


def test_what_is_changed_in_a_recipe_is_trained_elsewhere(conversions):
    recipes = [conversions.recipe_of(*each) for each in filter(None, conversions.MODELS.values())]
    directories = [recipe.output_dir for recipe in recipes]
    assert len(set(directories)) == len(directories) == 7
    assert "out/convert/tiny-llama-to-kerple-log-patch.fit=null" in directories


def test_far_is_past_the_reach_of_the_gentlest_of_eight_slopes(conversions):
    # The slopes of 8 heads end at 2^−8 (arXiv 2108.12409, §3); e^(−distance / 256) falls to 1/1000.
    assert np.ceil(256 * np.log(1000)) == conversions.FAR
    found = {n: np.array([0.0, 0.0, 1.0, 0.0]) for n in conversions.LENGTHS}
    assert conversions.far(made_up(conversions, found=found)).tolist() == [1.0, 0.0]


def test_a_change_is_paired_by_window(conversions):
    assert conversions.change(made_up(conversions), 1024) == "+2.00 [+2.00,+2.00]"


def test_a_row_tells_what_a_fit_gains_before_training(conversions):
    scores = {
        "plain": made_up(conversions),
        "fitted": made_up(conversions, untrained=np.array([5.03, 3.004])),
    }
    _, _, plain, fitted = conversions.table(scores).splitlines()
    assert plain.startswith("| plain | – | 5.000 | +1.00 [+1.00,+1.00] | +2.00 ")
    assert fitted.startswith("| fitted | 5.030 → 3.004 | 5.000 |")


@pytest.fixture
def short(conversions, monkeypatch, tmp_path):
    """The script, on little text."""
    documents = load_documents(SOURCE, "held_out")
    monkeypatch.setattr(conversions, "load_documents", lambda *_: documents)
    monkeypatch.setattr(conversions, "PROMPTS", 2)
    monkeypatch.setattr(conversions, "LENGTHS", (256, 512))
    monkeypatch.chdir(tmp_path)
    return conversions


def test_a_checkpoint_is_measured_once_and_is_lost_past_its_trained_length(short, monkeypatch):
    first = short.scores_of("unpatched", 1)
    monkeypatch.setattr(short, "measure", None)
    np.testing.assert_equal(vars(short.scores_of("unpatched", 1)), vars(first))
    assert first.losses[512].mean() > first.losses[256].mean() + 0.5


def test_a_fit_is_measured_beside_the_patch_alone(short):
    name = "convert/tiny-llama-to-kerple-log"
    plan = plan_evaluation(
        open_tokenizer(short.CHECKPOINT),
        load_documents(SOURCE, "held_out"),
        lengths=(256, 512),
        trained_length=256,
        windows=4,
        prompts=0,
    )
    fitted = short.recipe_of(name, f"data.source={SOURCE}")
    unfitted = short.recipe_of(name, "patch.fit=null")
    plain, better = short.untrained_losses(fitted, plan)
    assert short.untrained_losses(unfitted, plan) == [plain]
    assert better < plain - 0.3
