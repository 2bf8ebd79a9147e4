"""Pictures of encodings: what is on the axes, read from the figure, and the files that they become."""

import math

import pytest
import torch

from ropepatch.errors import CheckpointError, ConfigError
from ropepatch.methods import make_method
from ropepatch.pictures import draw, require_suffix, save
from ropepatch.portraits import BiasPortrait, Sizes, portrait

SIZES = Sizes(dim=16, original_max_position_embeddings=64, num_heads=4)


def picture(*names, sizes=SIZES, **options):
    return draw([portrait(make_method(name, **options), sizes) for name in names])


def panels(figure):
    """Every axes of a figure by its title."""
    found = {}
    for part in figure.subfigs or [figure]:
        found |= panels(part) if part is not figure and part.subfigs else {}
        found |= {axes.get_title(loc="left") or axes.get_title(): axes for axes in part.axes}
    return found


def lines(axes):
    """x and y of every named line."""
    return {
        line.get_label(): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


@pytest.fixture(scope="module")
def yarn():
    return panels(picture("yarn", factor=4.0))


def test_every_axis_is_labelled_in_units(yarn):
    labels = {title: (axes.get_xlabel(), axes.get_ylabel()) for title, axes in yarn.items()}
    assert labels == {
        "Angle at a position": ("pair, from fast to slow", "angle, radians"),
        "Wavelength of a pair": ("pair, from fast to slow", "tokens for a full turn"),
        "Long-term decay: bound on scores": ("distance, tokens", "mean of |partial sums|"),
        "Random scores, fitted within the trained length": ("distance, tokens", "|score|"),
        "The same between whole distances": ("distance, tokens", "score"),
    }


def test_angles_are_position_times_frequency(yarn):
    drawn = lines(yarn["Angle at a position"])
    theta = [10_000.0 ** (-i / 8) for i in range(8)]
    assert drawn["64, as trained"][1] == pytest.approx([64 * t for t in theta])
    assert drawn["256, unscaled"][1] == pytest.approx([256 * t for t in theta])
    scaled = drawn["256, yarn"][1]
    assert scaled[0] == pytest.approx(256)
    assert scaled[-1] == pytest.approx(64 * theta[-1])
    assert "never met in training" not in drawn


def test_angles_that_training_never_met_are_marked():
    drawn = lines(panels(picture("ntk", factor=4.0, alpha=1.0))["Angle at a position"])
    # Wavelengths are 6.3, 19.9, 62.8 and more than 64 from the fourth on.
    pairs, angles = drawn["never met in training"]
    assert pairs == [3, 4, 5, 6, 7]
    assert angles == pytest.approx([256 * 10_000.0 ** (-i / 8) for i in range(3, 8)])


def test_treatments_differ_in_marker_as_well_as_in_colour(yarn):
    drawn = [line for line in yarn["Wavelength of a pair"].get_lines() if "(" in line.get_label()]
    assert [line.get_label() for line in drawn] == ["kept (1)", "blended (2)", "interpolated (5)"]
    assert (
        len({line.get_marker() for line in drawn}) == len({line.get_color() for line in drawn}) == 3
    )


def test_wavelengths_are_those_of_the_method(yarn):
    pairs, waves = lines(yarn["Wavelength of a pair"])["interpolated (5)"]
    assert waves == pytest.approx([4 * 2 * math.pi * 10_000.0 ** (i / 8) for i in pairs])


def test_pairs_that_stopped_are_drawn_at_the_upper_edge():
    axes = panels(picture("proportional", proportion=0.5))["Wavelength of a pair"]
    assert lines(axes)["stopped (4)"] == ([4, 5, 6, 7], [0.97] * 4)


def test_the_decay_bound_is_drawn_as_trained_and_scaled(yarn):
    drawn = lines(yarn["Long-term decay: bound on scores"])
    assert set(drawn) == {"as trained", "yarn, factor 4"}
    distances, bound = drawn["as trained"]
    assert (distances[0], distances[-1], bound[0]) == (0, 256, 4.5)  # the mean of 1 to 8


def test_scores_explode_past_the_fit_and_stay_below_their_bound(yarn):
    drawn = lines(yarn["Random scores, fitted within the trained length"])
    assert max(drawn["fitted"][0]) < 64 <= min(drawn["extrapolated"][0])
    assert max(drawn["extrapolated"][1]) > 100 * max(drawn["fitted"][1])
    both = drawn["fitted"][1] + drawn["extrapolated"][1]
    assert all(
        size <= bound for size, bound in zip(both, drawn["bound on |score|"][1], strict=True)
    )


def test_biases_are_drawn_against_distance_with_the_reach_marked():
    found = panels(picture("alibi", factor=4.0))
    axes = found["Bias by distance"]
    drawn = lines(axes)
    # Slopes of four heads: 1/4, 1/16, 1/64, 1/256.
    assert list(drawn)[:4] == ["0: 28", "1: 111", "2: 443", "3: 1,769"]
    distances, biases = drawn["1: 111"]
    assert biases == pytest.approx([-distance / 16 for distance in distances])
    marked = axes.get_lines()[1].get_markevery()
    assert [distances[index] for index in marked] == [111]
    assert drawn["1/1000 of\nthe weight"][1][0] == pytest.approx(-math.log(1000))
    assert len({line.get_marker() for line in axes.get_lines()[:4]}) == 4


def test_heads_without_an_end_are_marked_at_the_edge():
    shown = BiasPortrait(
        method="flat",
        length=8,
        target=32,
        bias=lambda distances: -torch.ones(8, 1) * (distances > 0),
    )
    axes = panels(draw([shown]))["Bias by distance"]
    drawn = axes.get_lines()[:8]
    assert [line.get_xdata()[line.get_markevery()] for line in drawn] == [32] * 8
    assert len({line.get_marker() for line in drawn}) == 8
    assert "1/1000 of\nthe weight" not in lines(axes)  # out of sight


def test_bias_matrices_show_the_past_only():
    image = panels(picture("alibi", factor=4.0))["head 0"].get_images()[0].get_array()
    shown = torch.tensor(image.filled(math.nan))
    assert shown[40, 38] == pytest.approx(
        -2 * (255 / 127) / 4, abs=0.26
    )  # of 256 tokens in 128 cells
    assert shown.isnan()[torch.ones_like(shown).triu(1).bool()].all()
    assert not shown.isnan()[torch.ones_like(shown).tril().bool()].any()


def test_no_more_heads_are_drawn_than_can_be_told_apart():
    found = panels(picture("alibi", sizes=Sizes(num_heads=32)))
    heads = [title for title in found if title.startswith("head")]
    assert heads == [f"head {head}" for head in (0, 4, 9, 13, 18, 22, 27, 31)]


def test_sinusoids_are_a_heat_map_of_positions_and_channels():
    axes = panels(picture("sinusoidal", factor=4.0))["Vectors of the first 256 positions"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("channel", "position, tokens")
    values = axes.get_images()[0].get_array()
    assert values.shape == (256, 16)
    assert values[10, 3] == pytest.approx(math.cos(10 / 10_000 ** (2 / 16)))


def test_several_encodings_share_a_figure():
    figure = picture("alibi", "sinusoidal")
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        "alibi, factor 1: trained to 64 tokens",
        "sinusoidal, factor 1: trained to 64 tokens",
    ]


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_suffix_chooses_the_kind_of_file(suffix, start, tmp_path):
    path = tmp_path / f"out{suffix}"
    path.write_text("an old picture")
    save(picture("alibi"), path)
    assert path.read_bytes().startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_same_picture_is_the_same_svg(tmp_path):
    for name in ("one.svg", "two.svg"):
        save(picture("sinusoidal"), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_file_that_cannot_be_written_is_told_with_its_reason(tmp_path):
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(picture("alibi"), tmp_path / "none" / "out.png")


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf; found .*out\.jpg"):
        require_suffix(tmp_path / "out.jpg")
