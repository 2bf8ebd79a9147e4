"""The hash of a model's positions: that of their values, whatever made them."""

import hashlib

import pytest
import torch
from tiny_bias_models import bias_model
from tiny_models import tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM

from ropepatch import patched
from ropepatch.adapters.active_positions import positions_digest

LENGTHS = (16, 64)
ROPE = {"rope_type": "default", "rope_theta": 100.0}


def llama(**changes):
    return tiny_model("llama", rope_parameters={**ROPE, **changes})


def digest_of(*values):
    """By hand, of one set of float32 numbers."""
    content = b"".join(torch.as_tensor(v, dtype=torch.float32).numpy().tobytes() for v in values)
    return hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()[:8]


def test_it_is_of_the_frequencies_and_the_attention_factor():
    model = llama()
    dim = model.config.head_dim
    linear = 100.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim) / 4
    with patched(model, "linear", 4):
        assert positions_digest(model, LENGTHS) == digest_of(linear, 1.0)
    # All pairs turn more often than 0.001 times in 32 tokens, so that YaRN keeps them as they are.
    kept = {"beta_fast": 0.001, "beta_slow": 0.0001, "attention_factor": 1.5}
    with patched(model, "yarn", 4, original_max_position_embeddings=32, **kept):
        assert positions_digest(model, LENGTHS) == digest_of(4 * linear, 1.5)


def test_it_is_of_every_heads_slope():
    model = bias_model("bloom")
    # 6 heads: those of 4, then every other one of 8 (arXiv 2108.12409).
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    assert positions_digest(model, LENGTHS) == digest_of(slopes)
    with patched(model, "linear", 4):
        assert positions_digest(model, LENGTHS) == digest_of(slopes / 4)


@pytest.mark.parametrize(
    "make",
    [llama, *(lambda kind=kind: bias_model(kind) for kind in ("bloom", "mpt", "t5", "umt5"))],
)
def test_a_factor_of_one_changes_nothing_and_two_do(make):
    model = make()
    before = positions_digest(model, LENGTHS)
    assert before is not None
    with patched(model, "linear", 1, original_max_position_embeddings=32):
        assert positions_digest(model, LENGTHS) == before
    with patched(model, "linear", 2, original_max_position_embeddings=32):
        assert positions_digest(model, LENGTHS) != before
    assert positions_digest(model, LENGTHS) == before


def test_two_patches_that_say_the_same_differ_where_the_checkpoints_do():
    found = set()
    for base in (100.0, 101.0):
        with patched(llama(rope_theta=base), "yarn", 4) as model:
            found.add(positions_digest(model, LENGTHS))
    with patched(llama(), "yarn", 4, beta_fast=1.5) as model:
        found.add(positions_digest(model, LENGTHS))
    assert len(found) == 3


def test_methods_that_depend_on_the_length_are_told_by_the_lengths():
    model = llama()
    alone = positions_digest(model, (16, 64)), positions_digest(model, (16, 1024))
    assert alone[0] == alone[1]
    with patched(model, "dynamic_ntk", 32, original_max_position_embeddings=32):
        first, second = positions_digest(model, (16, 64)), positions_digest(model, (16, 1024))
    assert len({alone[0], first, second}) == 3


def test_one_number_of_a_table_is_enough():
    model = bias_model("t5")
    before = positions_digest(model, LENGTHS)
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        table[0, 0] += 1e-3
    assert positions_digest(model, LENGTHS) != before


def test_of_a_table_of_positions_it_is_of_the_rows():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    table = model.transformer.wpe.weight.detach()
    assert positions_digest(model, LENGTHS) == digest_of(table)
    with patched(model, "linear", 1):
        assert positions_digest(model, LENGTHS) == digest_of(table)


def test_encodings_that_are_put_in_differ_from_each_other():
    names = ("alibi", "kerple_log", "sandwich", "nope", "xpos", "sinusoidal", "learned")
    model, found = llama(), {positions_digest(llama(), LENGTHS)}
    for name in names:
        with patched(model, name, 2):
            found.add(positions_digest(model, LENGTHS))
    assert len(found) == len(names) + 1


def test_a_model_that_is_not_understood_has_none():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 32}
    model = GPTJForCausalLM(GPTJConfig(**sizes, rotary_dim=4))
    assert positions_digest(model, LENGTHS) is None
