"""The preview: what three sequences of a run are made of, without its model."""

import io

import pytest
import torch
import yaml
from rich.console import Console
from tiny_runs import LENGTH, pretraining_tree, seq2seq_tree

from ropepatch.cli import USER_ERROR, main
from ropepatch.training import runner
from ropepatch.training.preview import Preview
from ropepatch.training.recipe import parse_recipe


@pytest.fixture
def tree(tmp_path):
    """Packs of documents of 5 and of about 20 tokens."""
    (tmp_path / "texts").mkdir()
    for number in range(20):
        text = "one two\nthree" if number % 2 else "eleven [bold]twelve thirteen " * 3
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(text)
    tree = pretraining_tree(tmp_path)
    tree["data"] = {"source": str(tmp_path / "texts"), "length": LENGTH, "packing": {}}
    tree["data"]["mixture"] = {"retrieval": 0, "repeats": 0}
    return tree


def preview(tree):
    return Preview(parse_recipe(tree))


def printed(tree):
    console = Console(file=io.StringIO(), width=120)
    preview(tree).print(console)
    return console.file.getvalue()


def test_pieces_are_those_of_the_sequence_that_is_trained_on(tree):
    data = preview(tree)
    for index in range(24):
        item, found = data.mixture(index)[index], list(data.pieces(index))
        assert [piece.name for piece in found] == [f"document {n + 1}" for n in range(len(found))]
        assert [piece.start for piece in found[1:]] == [piece.end for piece in found[:-1]]
        assert (found[0].start, found[-1].end) == (0, LENGTH)
        for piece in found:
            part = slice(piece.start, piece.end)
            positions = item["position_ids"][part].tolist()
            assert piece.positions == (positions[0], positions[-1]) == (0, len(positions) - 1)
            assert piece.scored == int((item["labels"][part] != -100).sum())


def test_a_token_that_nothing_comes_before_is_not_scored(tree):
    tree["data"] |= {"packing": None, "length": 8}
    data = preview(tree)
    for index in range(24):
        labels = data.mixture(index)[index]["labels"]
        # A causal model's loss leaves the first label out.
        assert sum(piece.scored for piece in data.pieces(index)) == int((labels[1:] != -100).sum())


def test_positions_of_pose_are_ranges(tree):
    tree["data"] |= {"packing": None, "length": 8, "positions": {"target": 16, "chunks": 2}}
    data = preview(tree)
    for index in range(24):
        positions = data.mixture(index)[index]["position_ids"]
        ranges = [piece.positions for piece in data.pieces(index)]
        assert ranges[0][0] == int(positions[0])
        assert ranges[-1][1] == int(positions[-1])
        assert torch.cat([torch.arange(a, b + 1) for a, b in ranges]).tolist() == positions.tolist()


def test_a_recipe_for_several_devices_can_be_looked_at_on_one(tree):
    shared = {"fsdp": True, "context_parallel": 4}
    assert preview({**tree, "distributed": shared}).ends == preview(tree).ends == [24]


def test_encoder_and_decoder_are_pieces(tmp_path):
    data = preview(seq2seq_tree(tmp_path))
    found = [(piece.name, piece.start, piece.end, piece.scored) for piece in data.pieces(0)]
    assert found == [("encoder", 0, 24, 0), ("decoder", 24, 32, 8)]


def test_three_sequences_are_printed_with_their_shares_and_text(tree):
    lines = printed(tree).splitlines()
    assert lines[0].startswith("20 documents, ")
    # 6 steps of 2 × 2 sequences
    heads = [line for line in lines if line.startswith("sequence ")]
    assert [head.split(":")[0] for head in heads] == [
        "sequence 1 of 24",
        "sequence 13 of 24",
        "sequence 24 of 24",
    ]
    data = preview(tree)
    for head, index in zip(heads, (0, 12, 23), strict=True):
        count = len(data.mixture(index).sequence(index).starts)
        assert (
            f": 32 tokens, {count} pieces, {(LENGTH - count) / LENGTH:.1%} of its tokens scored"
            in head
        )
    text = printed(tree)
    assert "<|bos|>one two⏎three" in text
    assert "[bold]twelve" in text


def test_sequences_are_those_of_their_stage(tree):
    tree["stages"] = [{"steps": 2, "length": 16}, {"steps": 4}]
    heads = [line for line in printed(tree).splitlines() if line.startswith("sequence ")]
    assert [head.split(",")[0] for head in heads] == [
        "sequence 1 of 24: 16 tokens",
        "sequence 13 of 24: 32 tokens",
        "sequence 24 of 24: 32 tokens",
    ]


def test_of_many_pieces_some_are_shown(tree):
    tree["data"] |= {"packing": None, "length": 20}
    tree["data"]["positions"] = {"target": 4000, "kind": "random"}
    assert "… and 8 more pieces" in printed(tree)


def test_the_command_neither_trains_nor_makes_a_model(tree, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        pytest.fail("made a model")

    monkeypatch.setattr(runner, "load_model", refuse)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    for arguments in (["--preview", "data.seed=1"], ["data.seed=1", "--preview"]):
        assert main(["train", str(recipe), *arguments]) == 0
        assert "sequence 24 of 24" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_is_one_line(tree, tmp_path, capsys):
    (tmp_path / "texts" / "picture.png").write_bytes(b"\0")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    assert main(["train", str(recipe), "--preview"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "picture" in line]
    assert line == (
        f"ropepatch: warning: {tmp_path}/texts: 1 of 21 are left out, as they have no text in "
        "UTF-8: picture.png"
    )


def test_data_that_is_too_short_is_refused_with_what_to_do(tree, tmp_path, capsys):
    tree["data"]["packing"] = None
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    assert main(["train", str(recipe), "--preview"]) == USER_ERROR
    assert "or join several with data.packing" in capsys.readouterr().err


def test_an_unknown_option_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "recipe.yaml", "--previw", "data.seed=1"])
    assert "unrecognized arguments: --previw data.seed=1" in capsys.readouterr().err
