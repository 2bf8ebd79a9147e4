"""`ropepatch inspect`: encodings as text and as pictures, and what it refuses."""

import pytest
from tiny_bias_models import fresh_bias_model
from tiny_models import fresh_model

from ropepatch import patch_model, save_pretrained
from ropepatch.cli import USER_ERROR, main


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Rotates 16 channels; trained to 32 tokens."""
    directory = tmp_path_factory.mktemp("llama")
    fresh_model("llama").save_pretrained(directory)
    return directory


@pytest.fixture
def said(capsys):
    def inspect(*arguments):
        assert main(["inspect", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return inspect


def rows(text, heading):
    """Cells of the table whose first column has that heading."""
    lines = [line.split() for line in text.splitlines()]
    start = next(number for number, line in enumerate(lines) if line[:1] == [heading])
    return [line for line in lines[start + 2 :] if line]


def test_a_method_needs_no_checkpoint(said):
    shown = said("--method", "yarn", "--dim", 128, "--original-max-position-embeddings", 4096)
    assert "yarn, factor 4\n" in shown
    assert "trained to  4,096 tokens\n" in shown
    assert "target      16,384 tokens\n" in shown
    assert "geometry    128 channels in 64 pairs, base 10,000\n" in shown
    assert "pairs       21 kept, 25 blended, 18 interpolated\n" in shown
    assert "angles      all pairs stay within those that training reached\n" in shown
    assert "decay bound 32.5 at distance 0, " in shown
    assert "cos and sin times 1.139\n" in shown  # 0.1·ln 4 + 1
    table = rows(shown, "pair")
    assert table[0] == ["0", "6.3", "652", "kept", "1", "within"]
    assert table[-1] == ["63", "54,410.1", "0.0753", "interpolated", "0.25", "within"]


def test_pairs_that_leave_their_range_are_named(said):
    shown = said("--method", "base_change", "--set", "new_base=10000", "--dim", 8)
    assert "angles      pair 3 (1) leave those that training reached\n" in shown
    assert [row[-2:] for row in rows(shown, "pair")] == [*[["1", "within"]] * 3, ["of", "range"]]


def test_slopes_are_told_with_their_reach_and_what_that_is(said):
    shown = said("--method", "alibi", "--heads", 2, "--target-length", 8192)
    assert "a key 1/1000 of the weight" in " ".join(shown.split())
    assert "(bias ≤ −6.91)" in " ".join(shown.split())
    # Slopes 1/16 and 1/256 at distances 1, 8, 64, 4096, 8192.
    assert rows(shown, "head") == [
        ["0", "−0.0625", "−0.5", "−4", "−256", "−512", "111"],
        ["1", "−0.00391", "−0.0312", "−0.25", "−16", "−32", "1,769"],
    ]


def test_long_numbers_are_written_out(said):
    # Slope 1/2 at 8192 tokens, and 652 turns in 4096.
    assert "−4,096" in rows(said("--method", "alibi", "--target-length", 8192), "head")[0]
    assert rows(said("--method", "yarn"), "pair")[0][2] == "652"


def test_a_long_text_goes_on_below_itself(llama, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    before, _, after = said(llama).partition("replaced by ")
    assert all(len(line) <= 60 for line in (before + after).splitlines())
    first, second, *_ = after.splitlines()
    assert first.startswith("alibi, ")
    assert second.startswith(" " * 12 + "sandwich, ")


def test_an_encoders_reach_is_told_for_both_directions(tmp_path, said):
    fresh_bias_model("t5").save_pretrained(tmp_path)
    shown = said(tmp_path)
    assert "encoder, unscaled" in shown
    assert "reach, past" in shown
    assert "reach, future" in shown


def test_sinusoids_are_told_by_their_norm(said):
    expected = "norms       8 at position 0, 8 at position 4,095, 8 at position 16,383\n"
    assert expected in said("--method", "sinusoidal", "--dim", 128)


def test_a_table_that_ends_is_told_up_to_its_last_row(tmp_path, said):
    save_pretrained(patch_model(fresh_model("llama"), "learned", 1), tmp_path / "learned")
    assert "at position 31\n" in said(tmp_path / "learned")


def test_a_model_without_positions_is_told_and_not_drawn(tmp_path, said, capsys):
    save_pretrained(patch_model(fresh_model("llama"), "nope", 4), tmp_path / "nope")
    assert "patch       nope" in said(tmp_path / "nope")
    arguments = ["inspect", str(tmp_path / "nope"), "--plot", str(tmp_path / "out.png")]
    assert main(arguments) == USER_ERROR
    assert "there is nothing to draw" in capsys.readouterr().err


def test_a_model_is_told_with_a_method_and_without(llama, said):
    shown = said(llama)
    assert "positions   rotary, default, base 10,000\n" in shown
    assert "pairs       8 kept\n" in shown
    shown = said(llama, "--method", "linear", "--factor", 2)
    assert "patch       none\n" in shown
    assert "target      64 tokens\n" in shown
    assert "pairs       8 interpolated\n" in shown


def test_a_patched_checkpoint_is_told_by_its_patch(tmp_path, said):
    save_pretrained(patch_model(fresh_model("llama"), "ntk", 4), tmp_path / "ntk")
    shown = said(tmp_path / "ntk")
    assert "ntk, factor 4\n" in shown
    assert "pairs       1 kept, 6 blended, 1 interpolated\n" in shown


def test_a_picture_is_written_in_the_place_of_an_older_one(tmp_path, said):
    (tmp_path / "out.png").write_text("old")
    assert said("--method", "alibi", "--plot", tmp_path / "out.png").endswith("out.png\n")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give a MODEL, or --method"),
        (["--method", "yran"], "did you mean 'yarn'?"),
        (["{llama}", "--method", "yran"], "did you mean 'yarn'?"),
        (["--method", "nope"], "'nope' cannot be shown: nothing turns"),
        (["--method", "log"], "'log' cannot be shown: what it rescales is a checkpoint's own"),
        (["--method", "t5_bias"], "it is 0 at every distance until it is trained"),
        (["--method", "yarn", "--heads", "8"], "--heads does not apply to 'yarn'"),
        (
            ["--method", "alibi", "--dim", "8"],
            "--dim does not apply to 'alibi'; of the sizes: --heads",
        ),
        (["--method", "yarn", "--dim", "7"], "dim is 7"),
        (["--method", "yarn", "--factor", "0.5"], "factor is 0.5"),
        (["--method", "yarn", "--set", "factor=8"], "give --factor 8"),
        (["--method", "yarn", "--set", "beta=8"], "'yarn' has no option 'beta'"),
        (["--method", "alibi", "--original-max-position-embeddings", "0"], "at least 1"),
        (["{llama}", "--dim", "8"], "--dim is for --method without a MODEL"),
        (["{llama}", "--factor", "8"], "add --method"),
        (["{llama}", "--method", "log"], "'log' does not rescale rotary frequencies"),
        (["--method", "alibi", "--plot", "{tmp}/out.jpg"], "--plot writes .png, .svg, .pdf; found"),
        (["{tmp}/none", "--plot", "{tmp}/out"], "--plot writes .png, .svg, .pdf; found"),
        (["--method", "alibi", "--plot", "{tmp}/none/out.png"], "No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(llama, tmp_path, capsys, arguments, expected):
    filled = [argument.format(llama=llama, tmp=tmp_path) for argument in arguments]
    assert main(["inspect", *filled]) == USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("ropepatch: error: ")
    assert expected in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_trained_length_that_is_not_known_stops_a_picture_only(tmp_path, said, capsys):
    model = fresh_bias_model("t5")
    del model.config.n_positions
    model.save_pretrained(tmp_path / "t5")
    assert "tokens      the config does not say\n" in said(tmp_path / "t5")
    arguments = ["inspect", str(tmp_path / "t5"), "--plot", str(tmp_path / "out.png")]
    assert main(arguments) == USER_ERROR
    assert "give --original-max-position-embeddings" in capsys.readouterr().err
    assert main([*arguments, "--original-max-position-embeddings", "32"]) == 0
