"""Who may import whom, read from the source of every module: imports only go downwards."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(importlib.util.find_spec("ropepatch").origin).parent

# From the ground up: a module may import from its own layer and from those before it.
LAYERS = (
    "errors",
    "precision",
    "extras",
    "spelling",
    "whole_files",
    "bundled_recipes",
    "positions",
    "interpolation",
    "methods",
    "portraits",
    "attention",
    "surgery",
    "manifest",
    "adapters",
    "patch",
    "logit_change",
    "verification",
    "placed_parameters",
    "checkpoint",
    "ropepatch",  # the package itself, which only hands on names of the layers before it
    "corpus",
    "description",
    "evals",
    "terminal",
    "training",
    "model_portraits",
    "portrait_tables",
    "pictures",
    "inspection_arguments",
    "recipes_command",
    "evaluation_arguments",
    "evaluation_candidates",
    "evaluation_commands",
    "demo",
    "arguments",
    "inspection",
    "lm_eval_model",
    "patch_command",
    "lm_eval_command",
    "cli",
    "__main__",
)
WITHOUT_TRANSFORMERS = {
    "errors",
    "precision",
    "extras",
    "spelling",
    "positions",
    "interpolation",
    "methods",
    "portraits",
    "attention",
    "surgery",
    "manifest",
}
KNOW_TRANSFORMERS_INSIDE = {"adapters", "checkpoint"}
# What transformers documents for users; everything else is internal and moves between releases.
PUBLIC_TRANSFORMERS = {"transformers"} | {
    f"transformers.{module}"
    for module in ("integrations", "trainer_callback", "trainer_utils", "utils")
}
EXTRAS = {"accelerate", "datasets", "jinja2", "lm_eval", "matplotlib", "peft"}
MAY_USE_EXTRAS = {"checkpoint", "evals", "lm_eval_command", "lm_eval_model", "pictures", "training"}


class Import(NamedTuple):
    """One import statement: where it stands, and the module that it names."""

    source: str  # the importing module, e.g. "ropepatch.methods.yarn"
    line: int
    target: str  # the imported module, e.g. "ropepatch.positions" or "torch"
    waits: bool  # inside a function or for type checkers only: costs nothing when the module loads

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"

    @property
    def package(self) -> str:
        return self.target.split(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> str:
    """The first name below the package: "methods" for "ropepatch.methods.yarn"."""
    return module.split(".")[1] if "." in module else module


def named_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement names; `from ropepatch import patch` names ropepatch.patch."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    submodules = [f"{node.module}.{alias.name}" for alias in node.names]
    named = [name if name in MODULES else str(node.module) for name in submodules]
    return list(dict.fromkeys(named))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_below(node: ast.AST, source: str, waits: bool = False) -> list[Import]:
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found += [Import(source, child.lineno, t, waits) for t in named_modules(child)]
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(
            child
        )
        found += imports_below(child, source, waits or inside)
    return found


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
IMPORTS = [statement for name, tree in TREES.items() for statement in imports_below(tree, name)]
INTERNAL = [statement for statement in IMPORTS if statement.package == "ropepatch"]
OUTWARD = [statement for statement in IMPORTS if statement.package != "ropepatch"]


def test_every_module_has_a_layer():
    without = [module for module in MODULES if layer(module) not in LAYERS]
    assert without == [], "give the new module its place in LAYERS"


def test_imports_are_absolute():
    relative = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_imports_only_go_downwards():
    rank = {name: height for height, name in enumerate(LAYERS)}
    upwards = [
        str(statement)
        for statement in INTERNAL
        if rank.get(layer(statement.target), 99) > rank.get(layer(statement.source), -1)
        and statement.source != "ropepatch"
    ]
    assert upwards == []


def test_the_package_itself_loads_none_of_its_modules():
    assert [str(i) for i in INTERNAL if i.source == "ropepatch" and not i.waits] == []


def test_method_files_import_no_other_method_file():
    bases = ("base", "registry", "replacement")
    shared = {f"ropepatch.methods.{name}" for name in bases}
    sideways = [
        str(statement)
        for statement in INTERNAL
        if layer(statement.source) == layer(statement.target) == "methods"
        and statement.source != "ropepatch.methods"
        and statement.target not in shared
    ]
    assert sideways == []


def test_surgery_serves_what_patches_and_what_asks_for_patches_only():
    users = {layer(i.source) for i in INTERNAL if layer(i.target) == "surgery"}
    assert users <= {
        "adapters",
        "patch",
        "logit_change",
        "verification",
        "placed_parameters",
        "training",
    }


def test_the_corpus_knows_no_model():
    known = {layer(i.target) for i in INTERNAL if layer(i.source) == "corpus"}
    assert known <= {"corpus", "errors"}


def test_positions_methods_attention_and_surgery_import_no_transformers():
    bound = [
        str(statement)
        for statement in OUTWARD
        if statement.package == "transformers" and layer(statement.source) in WITHOUT_TRANSFORMERS
    ]
    assert bound == []


def test_only_adapters_and_checkpoint_reach_into_transformers():
    reaching = [
        str(statement)
        for statement in OUTWARD
        if statement.package == "transformers"
        and statement.target not in PUBLIC_TRANSFORMERS
        and layer(statement.source) not in KNOW_TRANSFORMERS_INSIDE
    ]
    assert reaching == []


def test_extras_are_imported_only_where_they_are_needed():
    astray = [
        str(statement)
        for statement in OUTWARD
        if statement.package in EXTRAS and layer(statement.source) not in MAY_USE_EXTRAS
    ]
    assert astray == []


def test_the_checkpoint_module_loads_without_the_extras():
    # It belongs to the core install, which has none of them.
    eager = [
        str(statement)
        for statement in OUTWARD
        if statement.package in EXTRAS
        and layer(statement.source) == "checkpoint"
        and not statement.waits
    ]
    assert eager == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ropepatch", {"torch", "transformers", *EXTRAS}),
        ("ropepatch.cli", {"torch", "transformers", *EXTRAS}),
        ("ropepatch.training.files", {"torch", "transformers", *EXTRAS}),
        ("ropepatch.methods", {"transformers", *EXTRAS}),
    ],
)
def test_importing_a_light_module_loads_nothing_heavy(module, heavy):
    program = f"import sys, {module}; print(*{heavy!r} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert done.stdout.split() == []
