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
EXTRAS = {name for names in PACKAGES.values() for name in names} - {"jinja2"}  # torch brings it
COMMANDS = {
    "methods": ["methods"],
    "inspect": ["inspect", CHECKPOINT],
    "patch": ["patch", CHECKPOINT, "patched", "--method", "yarn", "--factor", "4"],
    "compare": [
        *("compare", CHECKPOINT, "--methods=linear"),
        *("--windows=2", "--prompts=2", "--lengths=128", "--output=out"),
    ],
    "train": ["train", "missing.yaml"],
    "demo": ["demo"],
    "plot": ["inspect", "--method=alibi", "--plot=out.png"],
    "lm-eval": ["lm-eval", "some/model"],
    "adapter": ["inspect", "adapter"],
}
# One process for all, as it takes seconds to import torch.
PROGRAM = f"""
import contextlib, importlib.util, io, json, pathlib

from ropepatch import cli, load_pretrained, patch_info, patch_model, save_pretrained, verify
from ropepatch.checkpoint.opening import open_model

model = patch_model(open_model({CHECKPOINT!r}), "yarn", 4)
verify(model)
save_pretrained(model, "saved")
said = dict(
    loaded_factor=patch_info(load_pretrained("saved")).factor,
    extras=[name for name in {sorted(EXTRAS)!r} if importlib.util.find_spec(name)],
)
pathlib.Path("adapter").mkdir()
pathlib.Path("adapter", "adapter_config.json").write_text("{{}}")
for name, command in {COMMANDS!r}.items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(command)
    said[name] = [code, out.getvalue(), err.getvalue()]
said["written"] = sorted(map(str, pathlib.Path().rglob("*")))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the commands answered in an empty directory: exit code, output, errors."""
    site = tmp_path_factory.mktemp("site")
    link_core_packages(site)
    return run_in_core(site, tmp_path_factory.mktemp("empty"), PROGRAM)


def test_the_core_install_has_no_package_of_an_extra(said):
    assert said["extras"] == []


@pytest.mark.parametrize("extra", PACKAGES)
def test_extras_declare_the_packages_that_are_asked_for(extra):
    # lm_eval brings accelerate and peft by its own extra.
    declared = {re.split(r"[\[><]", name)[0] for name in PROJECT["optional-dependencies"][extra]}
    assert set(PACKAGES[extra]) - {"accelerate", "peft"} <= declared


@pytest.mark.parametrize(("command", "expected"), [("methods", "yarn"), ("inspect", "256")])
def test_methods_are_listed_and_a_checkpoint_is_inspected(said, command, expected):
    code, out, errors = said[command]
    assert (code, errors) == (0, "")
    assert expected in out


def test_a_checkpoint_is_patched(said):
    code, _, errors = said["patch"]
    assert (code, errors) == (0, "")
    assert "patched/model.safetensors" in said["written"]


def test_a_model_is_verified_saved_and_loaded(said):
    assert said["loaded_factor"] == 4


def test_losses_are_measured_and_the_page_says_what_it_needs(said):
    code, _, errors = said["compare"]
    assert code == 0
    assert errors.endswith(
        "ropepatch: warning: report.html needs matplotlib, which is not installed; "
        "run pip install 'ropepatch[eval]'\n"
    )
    assert {"out/results.json", "out/report.json"} <= set(said["written"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train",
            "ropepatch train needs accelerate, which is not installed; run pip install 'ropepatch[train]'",
        ),
        (
            "demo",
            "ropepatch demo needs accelerate, which is not installed; run pip install 'ropepatch[train]'",
        ),
        (
            "plot",
            "--plot needs matplotlib, which is not installed; run pip install 'ropepatch[eval]'",
        ),
        (
            "lm-eval",
            "ropepatch lm-eval needs lm_eval, which is not installed; run pip install 'ropepatch[lm-eval]'",
        ),
    ],
)
def test_a_command_that_needs_an_extra_says_so(said, command, message):
    assert said[command] == [USER_ERROR, "", f"ropepatch: error: {message}\n"]


def test_commands_that_fail_write_nothing(said):
    written = {name.split("/")[0] for name in said["written"]}
    assert written == {"saved", "patched", "out", "adapter"}


def test_an_adapter_says_that_it_needs_peft(said):
    assert "the adapter adapter needs peft, which is not installed" in said["adapter"][2]


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
