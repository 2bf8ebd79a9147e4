"""Angles stay exact through dtype casts and for any order of positions."""

import math

import numpy as np
import pytest
import torch
from tiny_models import KINDS, SLIDING_KINDS, TRAINED_LENGTH, fresh_model, tiny_model

from ropepatch import patch_model, unpatch_model, verify

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
THETA = {
    "mixtral": 1e6,
    "gemma3_text": 1e6,
    "olmo3": 5e5,
    "cohere": 5e5,
    "smollm3": 2e6,
    "helium": 1e5,
}
ROTATED = {"gpt_neox": 4, "stablelm": 4, "phi": 8, "glm4": 8, "nemotron": 8}  # of 16 channels
INTERLEAVED = ("cohere",)  # other families that pair neighbours spread the angles later
FAR = [0, 1, 31, 32, 127, 1000, 4097, 32768, 99_999]


def rotary_of(model):
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    return base.rotary_emb


def cos_and_sin(kind, model, position_ids, dtype=torch.float64):
    layer_type = ("full_attention",) if kind in SLIDING_KINDS else ()
    return rotary_of(model)(torch.zeros(1, 1, 1, dtype=dtype), position_ids, *layer_type)


def exact_yarn(kind, positions):
    """cos and sin of YaRN at factor 4 in float64, from the definition (arXiv 2309.00071, Def. 3)."""
    dim, theta = ROTATED.get(kind, 16), THETA.get(kind, 1e4)
    pairs = np.arange(dim // 2, dtype=np.float64)
    inv_freq = theta ** (-2 * pairs / dim)

    def pair_turning(turns):
        return dim * math.log(TRAINED_LENGTH / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_turning(32)), 0), min(math.ceil(pair_turning(1)), dim - 1)
    interpolated = np.clip((pairs - low) / (high - low), 0, 1)
    scaled = inv_freq * (1 - interpolated) + inv_freq / 4 * interpolated
    angles = np.asarray(positions, dtype=np.float64)[:, None] * scaled
    spread = np.repeat(angles, 2, -1) if kind in INTERLEAVED else np.concatenate([angles] * 2, -1)
    factor = 0.1 * math.log(4) + 1
    return np.cos(spread) * factor, np.sin(spread) * factor


CASTS = {
    "none": lambda model: model,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "there and back": lambda model: model.to(torch.bfloat16).float(),
}


@EVERY_KIND
@pytest.mark.parametrize("cast", CASTS)
def test_angles_are_exact_in_float64_after_a_cast(kind, cast):
    model = CASTS[cast](patch_model(fresh_model(kind), "yarn", 4))
    got = cos_and_sin(kind, model, torch.tensor([FAR]))
    for ours, exact in zip(got, exact_yarn(kind, FAR), strict=True):
        torch.testing.assert_close(ours[0], torch.from_numpy(exact), rtol=0, atol=1e-10)


@EVERY_KIND
def test_angles_are_exact_when_the_model_was_cast_before(kind):
    model = patch_model(fresh_model(kind).to(torch.bfloat16), "yarn", 4)
    got = cos_and_sin(kind, model, torch.tensor([FAR]))
    for ours, exact in zip(got, exact_yarn(kind, FAR), strict=True):
        torch.testing.assert_close(ours[0], torch.from_numpy(exact), rtol=0, atol=1e-10)


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cos_and_sin_are_rounded_once_to_the_dtype_of_the_activations(kind, dtype):
    model = patch_model(fresh_model(kind), "yarn", 4).to(dtype)
    got = cos_and_sin(kind, model, torch.tensor([FAR]), dtype)
    for ours, exact in zip(got, exact_yarn(kind, FAR), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours[0].double(),
            torch.from_numpy(exact),
            rtol=torch.finfo(dtype).eps / 2,
            atol=1e-10 + torch.finfo(dtype).smallest_normal,
        )


@EVERY_KIND
@pytest.mark.parametrize("method", ["yarn", "dynamic_yarn"])
def test_casting_there_and_back_leaves_the_rotary_module_bit_identical(kind, method):
    model = patch_model(fresh_model(kind), method, 4)
    position_ids = torch.tensor([FAR[:4], FAR[-4:]])
    before = cos_and_sin(kind, model, position_ids, torch.float32)
    after = cos_and_sin(kind, model.to(torch.bfloat16).float(), position_ids, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_verify_passes_after_a_cast(dtype):
    assert verify(patch_model(fresh_model("llama"), "yarn", 4).to(dtype)).frequency_error == 0


def test_a_model_cast_while_patched_is_unpatched_with_exact_frequencies():
    model = patch_model(fresh_model("llama"), "yarn", 4).to(torch.bfloat16)
    unpatch_model(model)
    assert torch.equal(rotary_of(model).inv_freq, rotary_of(tiny_model("llama")).inv_freq)


@EVERY_KIND
def test_positions_in_the_order_of_context_parallelism_give_the_same_angles(kind):
    """Head and tail chunks interleaved, as context parallelism deals them out to two ranks."""
    model = patch_model(fresh_model(kind), "yarn", 4)
    position_ids = torch.arange(64)[None]
    whole = cos_and_sin(kind, model, position_ids, torch.float32)
    for shard in ([*range(16), *range(48, 64)], [*range(16, 48)]):
        dealt = cos_and_sin(kind, model, position_ids[:, shard], torch.float32)
        for ours, reference in zip(dealt, whole, strict=True):
            assert torch.equal(ours, reference[:, shard])
