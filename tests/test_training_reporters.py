"""`training.report_to`: what is refused before a model is loaded, and where logs go."""

import os
import sys

import pytest
from tiny_runs import pretraining

from ropepatch.errors import ConfigError
from ropepatch.training.reporters import logs_below, require_reporters
from ropepatch.training.runner import train

WRITER = """
from pathlib import Path

class SummaryWriter:
    def __init__(self, log_dir):
        self.file = Path(log_dir, "scalars.txt").open("a")
    def add_scalar(self, key, value, step):
        self.file.write(f"{step} {key} {value}\\n")
    def add_text(self, *arguments):
        pass
    def flush(self):
        self.file.flush()
    def close(self):
        self.file.close()
"""


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """A stand-in for tensorboardX, which transformers uses where TensorBoard itself is not there."""
    package = tmp_path / "site" / "tensorboardX"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(WRITER)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    yield
    sys.modules.pop("tensorboardX", None)


def test_a_misspelt_reporter_is_refused():
    with pytest.raises(ConfigError, match=r"no reporter 'tensorbord'; did you mean tensorboard\?"):
        require_reporters(["tensorbord"])


def test_an_unknown_reporter_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"no reporter 'qqq'; known: .*trackio.*wandb"):
        require_reporters(["qqq"])


@pytest.mark.parametrize(
    ("name", "package"), [("trackio", "trackio"), ("comet_ml", "comet-ml"), ("swanlab", "swanlab")]
)
def test_a_reporter_that_is_not_installed_is_refused_with_what_to_install(
    monkeypatch, name, package
):
    monkeypatch.setitem(sys.modules, name, None)  # whatever this machine has
    with pytest.raises(ConfigError, match=f"{name} is not installed.*pip install {package},"):
        require_reporters([name])


def test_a_reporter_is_refused_before_anything_is_opened(tmp_path):
    with pytest.raises(ConfigError, match="there is no reporter"):
        train(pretraining(tmp_path, report_to=["qqq"]))
    assert not (tmp_path / "run").exists()


def test_what_is_reported_lies_in_the_run_directory(tmp_path, tensorboard):
    recipe = pretraining(tmp_path, max_steps=2, report_to=["tensorboard"])
    train(recipe)
    lines = (tmp_path / "run" / "logs" / "tensorboard" / "scalars.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if "train/loss" in line] == ["1", "2"]
    assert not (tmp_path / "run" / "runs").exists()


def test_the_environment_says_where_logs_go_only_while_a_run_lasts(tmp_path, monkeypatch):
    for variable in ("WANDB_DIR", "TRACKIO_DIR"):
        monkeypatch.delenv(variable, raising=False)
    with logs_below(tmp_path, ["wandb", "trackio", "mlflow"]):
        assert os.environ["WANDB_DIR"] == str(tmp_path / "wandb")
        assert (tmp_path / "trackio").is_dir()  # wandb and trackio make none themselves
    assert not {"WANDB_DIR", "TRACKIO_DIR"} & {*os.environ}


def test_a_directory_that_the_user_chose_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    with logs_below(tmp_path, ["wandb"]):
        assert os.environ["WANDB_DIR"] == "elsewhere"
    assert os.environ["WANDB_DIR"] == "elsewhere"
    assert list(tmp_path.iterdir()) == []
