"""Commands of the core install, which has none of the extras' packages."""

import re
import sys

import pytest
from core_install import PROJECT, ROOT, link_core_packages, run_in_core
from test_layers import OUTWARD

from ropepatch import extras
from ropepatch.cli import USER_ERROR
from ropepatch.errors import MissingExtraError
from ropepatch.extras import PACKAGES

CHECKPOINT = str(ROOT / "recipes" / "checkpoints" / "tiny-llama")
PROGRAM = """
from ropepatch import load_pretrained, patch_info, patch_model, save_pretrained, verify
from ropepatch.checkpoint.opening import open_model
model = patch_model(open_model({checkpoint!r}), "yarn", 4)
verify(model)
save_pretrained(model, "saved")
assert patch_info(load_pretrained("saved")).factor == 4
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    link_core_packages(directory)
    return directory


@pytest.fixture
def ropepatch(site, tmp_path):
    """The command, run in an empty directory."""
    return lambda *arguments: run_in_core(site, tmp_path, "-m", "ropepatch", *arguments)


EXTRAS = {name for names in PACKAGES.values() for name in names} - {"jinja2"}  # torch brings it


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_the_core_install_has_no_package_of_an_extra(package, site, tmp_path):
    assert "ModuleNotFoundError" in run_in_core(site, tmp_path, "-c", f"import {package}").stderr


@pytest.mark.parametrize("extra", PACKAGES)
def test_extras_declare_the_packages_that_are_asked_for(extra):
    # lm_eval brings accelerate and peft by its own extra.
    declared = {re.split(r"[\[><]", name)[0] for name in PROJECT["optional-dependencies"][extra]}
    assert set(PACKAGES[extra]) - {"accelerate", "peft"} <= declared


def test_methods_are_listed(ropepatch):
    assert "yarn" in ropepatch("methods").stdout


def test_a_checkpoint_is_inspected(ropepatch):
    assert "256" in ropepatch("inspect", CHECKPOINT).stdout


def test_a_checkpoint_is_patched(ropepatch):
    done = ropepatch("patch", CHECKPOINT, "saved", "--method", "yarn", "--factor", "4")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_is_verified_saved_and_loaded(site, tmp_path):
    done = run_in_core(site, tmp_path, "-c", PROGRAM.format(checkpoint=CHECKPOINT))
    assert done.returncode == 0, done.stderr


def test_losses_are_measured_and_the_page_says_what_it_needs(ropepatch, tmp_path):
    few = ("--windows=2", "--prompts=2", "--lengths=128", "--output=out")
    done = ropepatch("compare", CHECKPOINT, "--methods=linear", *few)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "report.html needs matplotlib, which is not installed; run pip install 'ropepatch[eval]'\n"
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.json", "report.json"} <= written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "missing.yaml"),
            "ropepatch train needs accelerate, which is not installed; run pip install 'ropepatch[train]'",
        ),
        (
            ("demo",),
            "ropepatch demo needs accelerate, which is not installed; run pip install 'ropepatch[train]'",
        ),
        (
            ("inspect", "--method=alibi", "--plot=out.png"),
            "--plot needs matplotlib, which is not installed; run pip install 'ropepatch[eval]'",
        ),
        (
            ("lm-eval", "some/model"),
            "ropepatch lm-eval needs lm_eval, which is not installed; run pip install 'ropepatch[lm-eval]'",
        ),
    ],
)
def test_a_command_that_needs_an_extra_says_so(ropepatch, tmp_path, arguments, message):
    done = ropepatch(*arguments)
    assert (done.returncode, done.stderr) == (USER_ERROR, f"ropepatch: error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_says_that_it_needs_peft(ropepatch, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    done = ropepatch("inspect", "adapter")
    assert "the adapter adapter needs peft, which is not installed" in done.stderr


#: Import names of what pyproject.toml does not call by them: pydantic pins its core, and of Liger's
#: kernels a recipe that wants them says what to install.
CALLED_OTHERWISE = {"yaml": "pyyaml", "pydantic_core": "pydantic", "liger_kernel": "torch"}


def test_every_package_that_is_imported_is_declared():
    extras = PROJECT["optional-dependencies"].values()
    declared = {
        re.split(r"[\[><]", name)[0]
        for name in [*PROJECT["dependencies"], *(name for names in extras for name in names)]
    }
    imported = {statement.package for statement in OUTWARD} - sys.stdlib_module_names
    assert {CALLED_OTHERWISE.get(name, name) for name in imported} <= declared


def test_training_with_transformers_that_is_too_old_says_so(monkeypatch):
    monkeypatch.setattr(extras, "version", lambda package: "5.22.2")
    extras.require_extra("eval", "--plot")
    with pytest.raises(MissingExtraError, match=r"needs transformers 5\.23 or newer, and found 5"):
        extras.require_extra("train", "ropepatch train")
