"""PoSE and RandPos: positions of long contexts in short sequences, and what attention makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import fresh_model, token_ids
from tiny_runs import LENGTH, pretraining_tree

from ropepatch.errors import ConfigError, DataError
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import prepare, train
from ropepatch.training.skipped_positions import (
    Skips,
    pose_positions,
    random_positions,
)
from ropepatch.training.text import SkippingWindows


@given(
    length=st.integers(4, 64),
    more=st.integers(1, 500),
    chunks=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_pose_moves_pieces_on_and_leaves_them_whole(length, more, chunks, seed):
    target = length + more
    positions = pose_positions(length, target, chunks, np.random.default_rng(seed))
    steps = np.diff(positions)
    assert positions[0] == 0
    assert (steps >= 1).all()
    assert (steps > 1).sum() <= chunks - 1
    assert positions[-1] < target


def test_pose_reaches_every_position_of_the_target():
    rng = np.random.default_rng(0)
    seen = np.concatenate([pose_positions(16, 64, 2, rng) for _ in range(3000)])
    assert set(seen) == set(range(64))


@given(length=st.integers(1, 64), more=st.integers(1, 500), seed=st.integers(0, 99))
def test_random_positions_are_ordered_and_differ(length, more, seed):
    positions = random_positions(length, length + more, 2, np.random.default_rng(seed))
    assert (np.diff(positions) >= 1).all()
    assert positions[0] >= 0
    assert positions[-1] < length + more


@pytest.mark.parametrize("kind", ["pose", "random"])
def test_later_tokens_see_earlier_ones_over_every_jump(kind):
    """Without the mask transformers cuts attention at each of them."""
    text = SkippingWindows([token_ids(1, 200)[0]], 24, Skips(kind=kind, target=96, chunks=3))
    drawn = text.draw(np.random.default_rng(0))
    columns = {"input_ids": drawn.tokens, **drawn.columns}
    batch = {name: torch.from_numpy(values)[None] for name, values in columns.items()}
    assert (batch["position_ids"].diff() > 1).any()
    model = fresh_model("llama").train()
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        batch["input_ids"] = batch["input_ids"].clone()
        batch["input_ids"][0, 0] += 1
        found = model(**batch, use_cache=False).logits
        cut = {**batch, "attention_mask": None}
        blind = model(**cut, use_cache=False).logits
    assert ((found - expected).abs().amax(-1) > 1e-4).all()
    # What the mask is for: if this fails, transformers no longer cuts, and the mask may go.
    assert not torch.allclose(blind[:, -1], found[:, -1], atol=1e-4)


# A token says where in the document it stood.
DOCUMENT = torch.arange(1000, 1400)


def test_text_of_pose_stands_where_its_positions_say():
    text = SkippingWindows([DOCUMENT], 32, Skips(target=128, chunks=3))
    for seed in range(20):
        tokens, scored, columns, _ = text.draw(np.random.default_rng(seed))
        positions = columns["position_ids"]
        assert (tokens - positions == tokens[0]).all()
        # The first token behind a gap follows from nothing.
        assert (scored[1:] == (np.diff(tokens) == 1)).all()
        assert columns["attention_mask"].all()


@pytest.mark.parametrize(
    "skips",
    [Skips(kind="random", target=512), Skips(kind="pose", target=512, chunks=4, contiguous=True)],
)
def test_text_of_random_positions_or_asked_for_in_one_piece_may_be_short(skips):
    text = SkippingWindows([DOCUMENT], 32, skips)
    tokens, scored, columns, _ = text.draw(np.random.default_rng(0))
    assert (np.diff(tokens) == 1).all()
    assert scored.all()
    assert (np.diff(columns["position_ids"]) > 1).any()


def test_tasks_stay_whole_and_get_positions_of_their_own():
    text = SkippingWindows([DOCUMENT], 32, Skips(target=128))
    columns = text.columns(np.random.default_rng(1))
    assert columns["position_ids"].max() > 32
    assert columns["attention_mask"].all()


def test_documents_must_reach_the_target_of_pose():
    with pytest.raises(DataError, match="fills a sequence of 512 tokens, the longest of 2 has 400"):
        SkippingWindows([DOCUMENT, DOCUMENT], 32, Skips(target=512))


@pytest.mark.parametrize("kind", ["pose", "random"])
def test_a_run_trains_positions_of_the_target(tmp_path, kind):
    tree = pretraining_tree(tmp_path)
    tree["data"]["positions"] = {"kind": kind, "target": 4 * LENGTH}
    tree["patch"] = {"method": "yarn", "factor": 4.0}
    recipe = parse_recipe(tree)
    trainer = prepare(RunDirectory(recipe))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[1] == LENGTH
    assert batch["position_ids"].max() >= LENGTH
    assert batch["attention_mask"].all()
    assert train(recipe).steps == 6


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"target": LENGTH}, r"target \(32\) must be more than length \(32\)"),
        ({"target": 128, "chunks": 1}, "chunks"),
        ({"target": 128, "chunks": 40}, r"chunks \(40\) exceed length \(32\)"),
        ({"kind": "rope", "target": 128}, "pose"),
    ],
)
def test_positions_that_cannot_be_are_refused(tmp_path, positions, message):
    tree = pretraining_tree(tmp_path)
    tree["data"]["positions"] = positions
    with pytest.raises(ConfigError, match=message):
        parse_recipe(tree)


def test_models_and_methods_that_count_tokens_are_refused(tmp_path):
    tree = pretraining_tree(tmp_path)
    tree["data"]["positions"] = {"target": 128}
    tree["patch"] = {"method": "dynamic_ntk", "factor": 4.0}
    with pytest.raises(ConfigError, match="'dynamic_ntk' scales by the tokens in a row"):
        train(parse_recipe(tree))
    tree["model"]["config"] = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2}
    del tree["patch"]
    tree["output_dir"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="BloomForCausalLM counts its tokens itself"):
        train(parse_recipe(tree))
