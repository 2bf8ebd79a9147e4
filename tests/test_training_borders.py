"""Packed documents do not see each other, and every document counts as it would alone."""

import pytest
import torch
from tiny_bias_models import ALIBI_KINDS, fresh_bias_model
from tiny_models import EAGER_ONLY, KINDS, SLIDING_KINDS, fresh_model, token_ids
from tiny_runs import LENGTH, pretraining_tree
from transformers import TrainerCallback

from ropepatch import patch_model
from ropepatch.errors import ConfigError
from ropepatch.training.borders import check_borders
from ropepatch.training.packing import Packing
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train

STARTS, TOKENS = (
    (0, 19, 24),
    48,
)  # documents of 19, 5 and 24 tokens; windows of layers slide over 16
POSITIONS, MASK = Packing(borders="positions"), Packing(borders="mask")


def recipe(packing, **sections):
    tree = {"model": {"path": "x"}, "training": {"max_steps": 1, "learning_rate": 1}}
    data = {"length": TOKENS, "packing": {"borders": packing.borders}}
    return parse_recipe({**tree, "output_dir": "out", "data": data, **sections})


def columns(packing):
    given = packing.columns(STARTS, TOKENS)
    return {name: torch.from_numpy(values)[None] for name, values in given.items()}


@torch.no_grad()
def answers(model, ids, **given):
    return model(input_ids=ids, use_cache=False, **given).logits


def assert_documents_stand_alone(model, packing):
    ids = token_ids(1, TOKENS)
    packed = answers(model, ids, **columns(packing))
    for start, end in zip(STARTS, [*STARTS[1:], TOKENS], strict=True):
        alone = answers(model, ids[:, start:end])
        torch.testing.assert_close(packed[:, start:end], alone, rtol=1e-4, atol=1e-4)


def assert_a_token_changes_its_own_document_only(model, packing):
    ids = token_ids(1, TOKENS)
    other = ids.clone()
    other[0, 20] = (ids[0, 20] + 1) % 96
    before, after = (answers(model, each, **columns(packing))[0] for each in (ids, other))
    changed = (before != after).any(-1).nonzero().flatten().tolist()
    assert changed == [20, 21, 22, 23]


PACKED = [(kind, POSITIONS) for kind in KINDS]
PACKED += [(kind, MASK) for kind in KINDS if kind not in (*EAGER_ONLY, *SLIDING_KINDS)]


@pytest.mark.parametrize(
    ("kind", "packing"), PACKED, ids=lambda value: getattr(value, "borders", value)
)
def test_rotary_models_keep_documents_apart(kind, packing):
    model = fresh_model(kind)
    check_borders(model, recipe(packing), packing)
    assert_a_token_changes_its_own_document_only(model, packing)
    assert_documents_stand_alone(model, packing)


@pytest.mark.parametrize("packing", [POSITIONS, MASK])
def test_patched_models_keep_documents_apart(packing):
    model = patch_model(fresh_model("llama"), "yarn", 4)
    check_borders(model, recipe(packing, patch={"factor": 4}), packing)
    assert_documents_stand_alone(model, packing)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
def test_patched_bias_models_keep_documents_apart_by_a_mask(kind):
    model = fresh_bias_model(kind)
    patch_model(model, "linear", 2, original_max_position_embeddings=32)
    check_borders(model, recipe(MASK, patch={"method": "linear"}), MASK)
    assert_documents_stand_alone(model, MASK)
    assert_a_token_changes_its_own_document_only(model, MASK)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
def test_bias_models_with_positions_are_refused(kind):
    model = fresh_bias_model(kind)
    with pytest.raises(
        ConfigError, match=r"counts its tokens itself|does not keep documents apart"
    ):
        check_borders(model, recipe(POSITIONS), POSITIONS)
    patch_model(model, "linear", 2, original_max_position_embeddings=32)
    with pytest.raises(
        ConfigError, match=r"counts its tokens itself|does not keep documents apart"
    ):
        check_borders(model, recipe(POSITIONS, patch={"method": "linear"}), POSITIONS)


@pytest.mark.parametrize("kind", ALIBI_KINDS)
def test_stock_bias_models_with_a_mask_are_refused(kind):
    with pytest.raises(
        ConfigError, match=r"fails on it|does not keep .*models with score biases need"
    ):
        check_borders(fresh_bias_model(kind), recipe(MASK), MASK)


def test_eager_attention_which_adds_a_mask_of_true_as_one_is_refused():
    model = fresh_model("llama", attention="eager")
    with pytest.raises(
        ConfigError, match=r"not keep documents apart in LlamaForCausalLM with eager"
    ):
        check_borders(model, recipe(MASK), MASK)
    check_borders(model, recipe(POSITIONS), POSITIONS)
    assert_documents_stand_alone(model, POSITIONS)


@pytest.mark.parametrize("kind", SLIDING_KINDS)
def test_a_mask_in_place_of_a_sliding_window_is_refused(kind):
    with pytest.raises(ConfigError, match=r"sliding_window 16 see all 48 tokens; use borders: pos"):
        check_borders(fresh_model(kind), recipe(MASK), MASK)


def test_methods_that_scale_by_the_length_of_a_row_are_refused_unless_it_is_fixed():
    with pytest.raises(ConfigError, match=r"'dynamic_yarn' scales by the tokens in a row"):
        check_borders(
            fresh_model("llama"), recipe(POSITIONS, patch={"method": "dynamic_yarn"}), POSITIONS
        )
    fixed = {"method": "dynamic_yarn", "options": {"training_length": 64}}
    check_borders(fresh_model("llama"), recipe(POSITIONS, patch=fixed), POSITIONS)


def test_a_check_leaves_the_model_in_training():
    model = fresh_model("llama").train()
    check_borders(model, recipe(POSITIONS), POSITIONS)
    assert model.training


@pytest.mark.parametrize("packing", [POSITIONS, MASK])
def test_what_tells_documents_apart_reaches_the_model_as_it_is(tmp_path, packing):
    tree = pretraining_tree(tmp_path, max_steps=1)
    tree["data"] |= {"packing": {"borders": packing.borders}, "mixture": {"retrieval": 0}}
    given = []

    class Listener(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **rest):
            model.register_forward_pre_hook(lambda *call: given.append(call[2]), with_kwargs=True)

    train(parse_recipe(tree), callbacks=[Listener()])
    (name,) = packing.columns((0,), LENGTH)
    shapes = {"position_ids": (2, LENGTH), "attention_mask": (2, 1, LENGTH, LENGTH)}
    for arguments in given:
        extra = arguments.keys() - {"input_ids", "labels", "num_items_in_batch"}
        assert extra == {name}
        assert arguments[name].shape == shapes[name]
    assert len(given) == 2


class Leaky(torch.nn.Module):
    """Hands every token the one before it, as the state of a recurrent layer does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, **rest):
        return self.layer(hidden_states + hidden_states.roll(1, dims=1) * 1e-2, **rest)


def test_a_model_with_a_leak_of_its_own_is_refused():
    model = fresh_model("llama")
    model.model.layers[1] = Leaky(model.model.layers[1])
    for packing in (POSITIONS, MASK):
        with pytest.raises(ConfigError, match=r"does not keep documents apart"):
            check_borders(model, recipe(packing), packing)
