"""What there is to see of an encoding, without a model: numbers by hand and from loops over floats."""

import math

import pytest
import torch

from ropepatch.errors import UnsupportedMechanismError
from ropepatch.methods import make_method
from ropepatch.portraits import FARTHEST, BiasPortrait, Sizes, TablePortrait, portrait

LLAMA_2 = Sizes(dim=128, base=10_000.0, original_max_position_embeddings=4096)
LLAMA_3 = Sizes(dim=128, base=500_000.0, original_max_position_embeddings=8192)


def show(name, sizes=LLAMA_2, **options):
    return portrait(make_method(name, **options), sizes)


def wavelengths(sizes):
    return [2 * math.pi * sizes.base ** (2 * i / sizes.dim) for i in range(sizes.dim // 2)]


def test_yarn_keeps_pairs_to_20_and_interpolates_those_from_46():
    # β = 32 lies at pair 20.94 of Llama 2, β = 1 at 45.03; arXiv 2309.00071 rounds both outwards.
    expected = ["kept"] * 21 + ["blended"] * 25 + ["interpolated"] * 18
    assert show("yarn", factor=4.0).treatments == expected


def test_llama3_keeps_interpolates_and_blends_by_wavelength():
    expected = [
        "kept" if wave < 8192 / 4 else "interpolated" if wave > 8192 else "blended"
        for wave in wavelengths(LLAMA_3)
    ]
    assert show("llama3", LLAMA_3, factor=8.0).treatments == expected
    assert set(expected) == {"kept", "blended", "interpolated"}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # θ is 1, 0.1, 0.01, 0.001; with α = 8 pairs turn 1, 2, 4 and 8 times slower
        ("linear", {}, ["interpolated"] * 4),
        ("ntk", {}, ["kept", "blended", "blended", "interpolated"]),
        ("ntk", {"alpha": 8.0}, ["kept", "blended", "interpolated", "slowed more"]),
        ("base_change", {"new_base": 100.0}, ["kept", "sped up", "sped up", "sped up"]),
        ("proportional", {"proportion": 0.5}, ["interpolated"] * 2 + ["stopped"] * 2),
    ],
)
def test_treatments_say_how_much_slower_a_pair_turns(name, options, expected):
    assert show(name, Sizes(dim=8), factor=4.0, **options).treatments == expected


def test_nothing_is_changed_at_factor_1():
    assert set(show("yarn", factor=1.0).treatments) == {"kept"}


def test_turns_are_trained_length_over_wavelength():
    expected = torch.tensor([4096 / wave for wave in wavelengths(LLAMA_2)], dtype=torch.float64)
    torch.testing.assert_close(show("yarn", factor=4.0).turns, expected)


def test_pairs_that_turned_less_than_once_leave_their_range_unless_slowed_by_the_factor():
    sizes = Sizes(dim=8)  # wavelengths 6.3, 63, 628, 6283: the last does not turn once in 4096
    assert show("base_change", sizes, factor=4.0, new_base=10_000.0).leaves_range.tolist() == [
        False,
        False,
        False,
        True,
    ]
    assert not show("linear", sizes, factor=4.0).leaves_range.any()
    assert not show("base_change", sizes, factor=1.0).leaves_range.any()
    # Its last frequency is θ/4 and stays within; that of half the slow-down is not.
    assert not show("ntk", sizes, factor=4.0).leaves_range.any()
    assert show("ntk", sizes, factor=4.0, alpha=2.0).leaves_range.tolist()[-1]


def test_a_length_dependent_method_is_shown_at_the_target_length():
    dynamic = show("dynamic_linear", factor=4.0)
    torch.testing.assert_close(dynamic.ratios, torch.full((64,), 0.25, dtype=torch.float64))
    assert dynamic.target == 16_384


def test_the_decay_bound_of_a_method_is_that_of_its_frequencies():
    at = torch.tensor([0, 400])
    unscaled, scaled = show("linear", factor=1.0), show("linear", factor=4.0)
    assert scaled.decay_bound(at)[0] == 32.5
    torch.testing.assert_close(scaled.decay_bound(at), unscaled.decay_bound(at / 4))


def test_xpos_bounds_what_is_far_by_less():
    at = torch.tensor([0, 4096])
    here, far = show("xpos").decay_bound(at).tolist()
    assert here == 32.5
    assert far < 0.5 * show("linear").decay_bound(at)[1].item()


def test_alibi_reaches_to_ln_1000_over_the_slope():
    # Slopes 1/2 … 1/256; ln 1000 = 6.9078, so 13.8, 27.6, 55.3, 110.5, 221.05, 442.1, 884.2, 1768.4.
    assert show("alibi").reach() == [14, 28, 56, 111, 222, 443, 885, 1769]


def test_split_alibi_reaches_one_way_only():
    sizes = Sizes(num_heads=4, bidirectional=True)
    # Slopes 1/16 and 1/256 of two heads each; the other direction is hidden from its first token on.
    shown = show("alibi", sizes, directions="split")
    assert shown.reach() == [111, 1769, 1, 1]
    assert shown.reach(-1) == [1, 1, 111, 1769]


def test_reach_is_against_distance_0_and_may_have_no_end():
    shown = BiasPortrait(
        method="a ramp, and one that is too flat",
        length=8,
        target=8,
        bias=lambda distances: torch.stack((100 - distances, -distances / FARTHEST)),
    )
    assert shown.reach() == [7, None]
    assert shown.against_here(torch.tensor([2.0])).tolist() == [[-2.0], [-2.0 / FARTHEST]]


def test_reach_is_found_in_whichever_block_it_lies():
    for tokens in (1, 16_384, 16_385, 40_000):
        shown = BiasPortrait(
            method="a step",
            length=8,
            target=8,
            bias=lambda distances, tokens=tokens: -7.0 * (distances >= tokens)[None],
        )
        assert shown.reach() == [tokens]


def test_sinusoids_are_shown_over_the_channels_asked_for():
    shown = show("sinusoidal", Sizes(dim=6))
    assert isinstance(shown, TablePortrait)
    expected = [
        wave(5 / 10_000 ** (2 * pair / 6)) for pair in range(3) for wave in (math.sin, math.cos)
    ]
    assert shown.vectors(torch.tensor([5]))[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nope", "nothing turns"),
        ("t5_bias", "0 at every distance until it is trained"),
        ("learned", "random until they are trained"),
    ],
)
def test_what_cannot_be_seen_is_refused_with_the_reason(name, reason):
    with pytest.raises(UnsupportedMechanismError, match=reason):
        show(name)
