"""Which checkpoints a run goes on from, and what it says of those that it does not."""

import os
import subprocess

import pytest
from tiny_runs import pretraining

from ropepatch.errors import RopepatchWarning
from ropepatch.training.checkpoints import SUMS, checkpoints, damage, seal
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    train(pretraining(root, max_steps=2, save_steps=1))
    return root / "run" / "checkpoint-2"


def truncate(path):
    os.truncate(path, path.stat().st_size - 10)


def flip(path):
    """Change a byte in the middle, of which no header and no size tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_file_that_a_checkpoint_of_the_trainer_has_is_sealed(finished):
    sealed = [line.split("  ")[1] for line in (finished / SUMS).read_text().splitlines()]
    assert sorted([*sealed, SUMS]) == sorted(path.name for path in finished.iterdir())
    assert {"optimizer.pt", "rng_state.pth", "scheduler.pt", "model.safetensors"} <= {*sealed}
    assert damage(finished) is None


def test_the_seal_is_what_sha256sum_reads(finished):
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=finished, check=True)


@pytest.mark.parametrize("spoil", [truncate, flip, os.remove])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", SUMS])
def test_damage_to_any_file_is_seen(finished, name, spoil):
    path = finished / name
    content = path.read_bytes()
    try:
        spoil(path)
        assert damage(finished) is not None
    finally:
        path.write_bytes(content)


def test_a_file_that_was_not_sealed_is_damage(finished):
    (finished / "more.bin").touch()
    assert damage(finished) == "more.bin is damaged"
    (finished / "more.bin").unlink()


def fake_run(tmp_path, *steps, **training):
    run = RunDirectory(pretraining(tmp_path, **training))
    run.claim()
    for step in steps:
        directory = run.path / f"checkpoint-{step}"
        directory.mkdir()
        (directory / "optimizer.pt").write_bytes(b"state")
        seal(directory)
    return run


def spoil(run, *steps):
    for step in steps:
        (run.path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"stat")


def test_a_damaged_checkpoint_is_named_with_the_one_that_is_taken(tmp_path):
    run = fake_run(tmp_path, 2, 4)
    spoil(run, 4)
    message = (
        r"checkpoint-4 is not whole \(optimizer\.pt is damaged\), kept as damaged-checkpoint-4; "
        "the run goes on from checkpoint-2"
    )
    with pytest.warns(RopepatchWarning, match=message):
        assert run.last_good_checkpoint() == run.path / "checkpoint-2"


def test_where_nothing_whole_is_left_the_run_says_that_it_starts_again(tmp_path):
    run = fake_run(tmp_path, 2, 4)
    spoil(run, 2, 4)
    with pytest.warns(RopepatchWarning, match="the run starts from the beginning"):
        assert run.last_good_checkpoint() is None
    assert checkpoints(run.path) == []
    assert (run.path / "damaged-checkpoint-2" / "optimizer.pt").exists()


def test_whole_checkpoints_are_taken_without_a_word(tmp_path, recwarn):
    run = fake_run(tmp_path, 2, 10)
    assert run.last_good_checkpoint() == run.path / "checkpoint-10"
    assert list(recwarn) == []


def test_a_damaged_checkpoint_does_not_outlive_the_good_ones_before_it(tmp_path):
    # By number it is the newest, which the Trainer keeps when it deletes old ones.
    run = fake_run(tmp_path, 50, save_steps=1, keep_checkpoints=1, max_steps=3)
    spoil(run, 50)
    with pytest.warns(RopepatchWarning, match="checkpoint-50 is not whole"):
        train(run.recipe)
    assert [path.name for path in checkpoints(run.path)] == ["checkpoint-3"]
