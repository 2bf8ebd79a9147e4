"""S² attention against its definition, dense and in float64, and inside of models."""

import pytest
import torch
from tiny_bias_models import bias_model
from tiny_models import KINDS, TRAINED_LENGTH, fresh_model, tiny_model, token_ids
from tiny_runs import LENGTH, extension_tree, pretraining, pretraining_tree

from ropepatch import patch_model
from ropepatch.attention.shifted_sparse import shifted_sparse_attention
from ropepatch.errors import ConfigError
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train
from ropepatch.training.sparse_attention import use_sparse_attention

# Soft-capped scores, or a window that is shorter than what is trained.
REFUSED = ("gemma2", "gemma3_text", "olmo3")
GROUP = 8


def definition(query, key, value, group, shift):
    """Every pair of tokens by hand: causal, and in one group of the head."""
    heads, length = query.shape[1:3]
    key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
    place = torch.arange(length)
    allowed = torch.zeros(heads, length, length, dtype=torch.bool)
    for head in range(heads):
        moved = place + (group // 2 if shift and head >= heads // 2 else 0)
        same = moved[:, None] // group == moved[None] // group
        allowed[head] = same & (place[:, None] >= place[None])
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value


def states(heads, key_heads, length=32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, count, length, 4, generator=generator, dtype=torch.float64)
        for count in (heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (4, 1), (3, 3), (6, 3)])
@pytest.mark.parametrize("group", [4, 8, 16, 32, 64])
def test_attention_is_what_the_definition_says(shift, heads, key_heads, group):
    inputs = [each.requires_grad_() for each in states(heads, key_heads)]
    found = shifted_sparse_attention(*inputs, group, shift=shift and group < 32)
    expected = definition(*inputs, group, shift and group < 32)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def sparse(kind, *, patch=True, group=GROUP, shift=True):
    model = fresh_model(kind)
    if patch:
        patch_model(model, "yarn", 2.0)
    use_sparse_attention(model, group, shift=shift)
    return model


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFUSED])
def test_the_last_token_changes_nothing_before_it(kind):
    model = sparse(kind).train()
    ids = token_ids(1, TRAINED_LENGTH)
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :-1], model(other).logits[:, :-1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFUSED])
def test_training_sees_over_borders_by_the_shift_only(kind):
    """Two layers carry what the first token says half a group past the first border, no further."""
    ids = token_ids(1, TRAINED_LENGTH)
    other = ids.clone()
    other[0, GROUP - 1] += 1
    for shift, reaches in ((True, True), (False, False)):
        model = sparse(kind, shift=shift).train()
        with torch.no_grad():
            change = (model(ids).logits - model(other).logits).abs().amax(-1)[0]
        assert bool((change[GROUP : GROUP + GROUP // 2] > 0).all()) == reaches
        assert (change[-GROUP:] == 0).all()


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi3"])
def test_evaluation_attends_to_everything(kind):
    ids = token_ids(1, 2 * TRAINED_LENGTH)
    plain = patch_model(fresh_model(kind), "yarn", 2.0).eval()
    with torch.no_grad():
        assert torch.equal(sparse(kind).eval()(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(
    ("kind", "option", "changes"),
    [("gemma2", "softcap", {}), ("gpt_oss", "s_aux", {"num_local_experts": 4, "head_dim": 16})],
)
def test_attention_with_more_than_scores_is_refused(kind, option, changes):
    model = tiny_model(kind, attention="eager", **changes)
    with pytest.raises(ConfigError, match=f"has no place for the {option}"):
        use_sparse_attention(model, GROUP)
    assert model.config._attn_implementation == "eager"


def test_models_with_attention_of_their_own_are_refused():
    with pytest.raises(ConfigError, match="reaches 0 of 2 layers of BloomForCausalLM"):
        use_sparse_attention(bias_model("bloom"), GROUP)


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo3"])
def test_a_sliding_window_shorter_than_the_sequence_is_refused(kind):
    model = fresh_model(kind).train()
    use_sparse_attention(model, GROUP)
    with pytest.raises(ConfigError, match="a sliding window"):
        model(token_ids(1, TRAINED_LENGTH))


def test_padding_is_refused():
    model = sparse("llama").train()
    mask = torch.ones(1, TRAINED_LENGTH, dtype=torch.long)
    assert model(token_ids(1, TRAINED_LENGTH), attention_mask=mask).logits.isfinite().all()
    mask[0, :3] = 0
    with pytest.raises(ConfigError, match="of padding, packed documents"):
        model(token_ids(1, TRAINED_LENGTH), attention_mask=mask)


def test_sequences_of_broken_groups_are_refused():
    with pytest.raises(ConfigError, match="whole groups of 8 tokens; found 30"):
        sparse("llama").train()(token_ids(1, 30))


def test_a_run_trains_with_groups_and_saves_a_plain_model(tmp_path):
    base = train(pretraining(tmp_path)).directory
    tree = extension_tree(tmp_path, base)
    tree["training"]["shifted_attention"] = {"group": LENGTH}
    tree["training"]["gradient_checkpointing"] = True
    tree["output_dir"] = str(tmp_path / "extended")
    assert train(parse_recipe(tree)).steps == 6
    text = (tmp_path / "extended" / "final" / "adapter_config.json").read_text()
    assert "s2" not in text


def test_lengths_of_broken_groups_are_refused_by_the_recipe(tmp_path):
    tree = pretraining_tree(tmp_path)
    tree["training"]["shifted_attention"] = {"group": 20}
    with pytest.raises(ConfigError, match=r"length \(32\) must be a multiple"):
        parse_recipe(tree)
