"""The base that base_change chooses by itself, against the definition it comes from (arXiv 2405.14591)."""

import math

import pytest
import torch

from ropepatch.errors import MethodOptionError
from ropepatch.methods import RotaryGeometry, make_method


def geometry(dim: int, base: float, length: int) -> RotaryGeometry:
    return RotaryGeometry(dim=dim, base=base, original_max_position_embeddings=length)


def chosen_base(dim: int, target: int, *, base: float = 1e4) -> float:
    """What base_change takes for a target of 4 times the original length."""
    return make_method("base_change", factor=4).native(geometry(dim, base, target // 4))[
        "rope_theta"
    ]


def lowest_coherence(dim: int, base: float, length: int) -> float:
    """min over D of Σ cos(D·θ_i), summed pair by pair."""
    distances = torch.arange(length + 1, dtype=torch.float64)
    total = torch.zeros_like(distances)
    for i in range(dim // 2):
        total += torch.cos(distances * math.exp(-2 * i / dim * math.log(base)))
    return total.min().item()


targets = pytest.mark.parametrize(
    ("dim", "target"), [(32, 2048), (64, 8192), (128, 4096), (128, 8192)]
)


@targets
def test_the_default_base_is_coherent_up_to_the_target(dim, target):
    assert lowest_coherence(dim, chosen_base(dim, target), target) >= 0


# Coherent bases come in narrow islands (84.0k–84.8k and 91.0k–91.4k for 8192 tokens and 128 channels), so
# a base somewhat below the default one may hold as well. One step of the grid and half of it do not.
@targets
@pytest.mark.parametrize("share", [1 / 1.05, 0.5, 0.25, 0.1])
def test_a_lower_base_is_incoherent_within_the_target(dim, target, share):
    assert lowest_coherence(dim, share * chosen_base(dim, target), target) < 0


@pytest.mark.parametrize(
    ("target", "published"), [(4096, 2.7e4), (8192, 8.4e4), (16384, 3.1e5), (32768, 6.4e5)]
)
def test_the_default_base_is_within_a_factor_2_of_the_published_table(target, published):
    assert published / 2 < chosen_base(128, target) < published * 2


def test_the_default_base_is_the_one_that_the_frequencies_use():
    base = chosen_base(64, 4096)
    found = make_method("base_change", factor=4).rotary(geometry(64, 1e4, 1024)).inv_freq
    expected = torch.tensor([base ** (-i / 32) for i in range(32)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("base", [1e6, 1e8])
def test_a_base_that_already_serves_the_target_is_kept(base):
    assert chosen_base(64, 2048, base=base) == base


def test_a_single_pair_that_no_base_serves_is_refused_before_it_is_used():
    # One pair only: θ_0 is 1 whatever the base, and cos(2) is negative.
    with pytest.raises(MethodOptionError, match=r"no base .* 2 rotated channels.*give new_base"):
        chosen_base(2, 2048)
