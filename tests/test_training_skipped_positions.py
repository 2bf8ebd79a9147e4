"""PoSE and RandPos: positions of long contexts in short sequences, and what attention makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import fresh_model, token_ids
from tiny_runs import LENGTH, pretraining_tree

from ropepatch.errors import ConfigError
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import prepare, train
from ropepatch.training.skipped_positions import (
    WithSkippedPositions,
    pose_positions,
    random_positions,
)


@given(
    length=st.integers(4, 64),
    more=st.integers(1, 500),
    chunks=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_pose_moves_pieces_on_and_leaves_them_whole(length, more, chunks, seed):
    target = length + more
    positions = pose_positions(length, target, chunks, np.random.default_rng(seed)).numpy()
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
    assert (positions.diff() >= 1).all()
    assert positions[0] >= 0
    assert positions[-1] < length + more


@pytest.mark.parametrize("kind", ["pose", "random"])
def test_later_tokens_see_earlier_ones_over_every_jump(kind):
    """Without the mask transformers cuts attention at each of them."""
    ids = [{"input_ids": token_ids(1, 24)[0]}]
    sample = WithSkippedPositions(ids, kind, 96, 3, seed=0)[0]
    batch = {name: values[None] for name, values in sample.items()}
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


def test_positions_of_a_sample_depend_on_seed_and_number_only():
    ids = [{"input_ids": torch.zeros(16, dtype=torch.long)} for _ in range(3)]
    some, same = (WithSkippedPositions(ids, "pose", 64, 2, seed=4) for _ in range(2))
    other = WithSkippedPositions(ids, "pose", 64, 2, seed=5)
    assert len(some) == 3
    assert [some[i]["position_ids"].tolist() for i in (2, 0)] == [
        same[i]["position_ids"].tolist() for i in (2, 0)
    ]
    assert some[0]["position_ids"].tolist() != some[1]["position_ids"].tolist()
    assert some[0]["position_ids"].tolist() != other[0]["position_ids"].tolist()


@pytest.mark.parametrize("kind", ["pose", "random"])
def test_a_run_trains_positions_of_the_target(tmp_path, kind):
    tree = pretraining_tree(tmp_path)
    tree["data"]["positions"] = {"kind": kind, "target": 4 * LENGTH}
    tree["patch"] = {"method": "yarn", "factor": 4.0}
    recipe = parse_recipe(tree)
    trainer = prepare(recipe, RunDirectory(recipe))
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
