"""What a run directory tells of its run: versions, patch, loss curve."""

import json
import subprocess
from importlib.metadata import version

import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread
from tiny_runs import LENGTH, extension, pretraining, pretraining_tree, with_evaluation

from ropepatch.checkpoint import read_sidecar
from ropepatch.precision import PrecisionChoice
from ropepatch.training import loss_curve
from ropepatch.training.environment import record_session
from ropepatch.training.loss_curve import draw_loss_curve
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train

CHOICE = PrecisionChoice("fp32", "as asked")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")


@pytest.fixture(scope="module", autouse=True)
def drawn_loss_curves():
    """Curves with pixels, which tests of other files do without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_curve, "Figure", Figure)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    train(parse_recipe(with_evaluation(pretraining_tree(root), root)))
    return root / "run"


def sessions(path):
    return json.loads(path.read_text())["sessions"]


def git(directory, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(
        command, cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


def write_metrics(path, losses):
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_run_directory_holds_what_its_reader_looks_for(run):
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == [
        "checkpoint-4",
        "checkpoint-6",
        "environment.json",
        "evaluation",
        "final",
        "inputs.json",
        "loss.png",
        "metrics.jsonl",
        "recipe.yaml",
        "ropepatch.json",
    ]
    assert {path.name for path in (run / "evaluation").iterdir()} == {
        "report.html",
        "report.json",
        "settings.yaml",
    }
    assert yaml.safe_load((run / "evaluation" / "settings.yaml").read_text())["windows"] == 3


def test_every_session_writes_down_its_versions(tmp_path):
    path = tmp_path / "environment.json"
    record_session(path, 0, CHOICE)
    record_session(path, 40, CHOICE)
    first, second = sessions(path)
    assert (first["first_step"], second["first_step"]) == (0, 40)
    for package in PACKAGES:
        assert first[package] == version(package)


def test_the_commit_of_the_working_directory_is_written_down(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "--quiet")
    (tree / "file").write_text("one")
    git(tree, "add", "file")
    git(tree, "commit", "--quiet", "-m", "one")
    monkeypatch.chdir(tree)
    path = tmp_path / "environment.json"
    record_session(path, 0, CHOICE)
    (tree / "file").write_text("two")
    record_session(path, 0, CHOICE)
    clean, dirty = sessions(path)
    commit = git(tree, "rev-parse", "HEAD")
    assert (clean["git_commit"], clean["git_dirty"]) == (commit, False)
    assert (dirty["git_commit"], dirty["git_dirty"]) == (commit, True)


def test_outside_of_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    record_session(tmp_path / "environment.json", 0, CHOICE)
    assert "git_commit" not in sessions(tmp_path / "environment.json")[0]


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    record_session(tmp_path / "environment.json", 0, CHOICE)
    assert "git_commit" not in sessions(tmp_path / "environment.json")[0]


def test_the_patch_lies_beside_the_run(tmp_path, run):
    train(extension(tmp_path, run / "final"))
    manifest = read_sidecar(tmp_path / "run")
    assert (manifest.method, manifest.factor) == ("yarn", 4)
    assert (manifest.original_max_position_embeddings, manifest.max_position_embeddings) == (
        LENGTH,
        4 * LENGTH,
    )


def test_a_run_without_a_patch_says_so(run):
    assert read_sidecar(run).method is None


def test_the_loss_curve_is_drawn_with_every_checkpoint(tmp_path, monkeypatch):
    drawn = []

    def draw(metrics, tokens_per_step, stages=()):
        drawn.append(len(metrics.read_text().splitlines()))

    monkeypatch.setattr("ropepatch.training.loss_curve.draw_loss_curve", draw)
    train(pretraining(tmp_path))
    assert drawn == [2, 4, 6]


def test_a_loss_curve_is_a_picture_that_is_not_empty(tmp_path):
    metrics = write_metrics(tmp_path / "metrics.jsonl", [(1, 3.0), (2, 2.5), (3, 2.0)])
    picture = imread(draw_loss_curve(metrics, 64))
    assert picture.shape[1] > picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05


def test_a_curve_of_one_point_is_seen(tmp_path):
    one = imread(draw_loss_curve(write_metrics(tmp_path / "metrics.jsonl", [(1, 3.0)]), 64))
    blue = (one[..., 2] > 0.6) & (one[..., 0] < 0.2)
    assert blue.sum() > 20


def test_the_axes_of_the_loss_curve_have_units(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    draw_loss_curve(write_metrics(tmp_path / "metrics.jsonl", [(1, 3.0), (2, 2.0)]), 6144)
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "optimizer steps, 6,144 tokens each"
    assert axes.get_ylabel() == "loss, nats per token"
