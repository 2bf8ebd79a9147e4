"""Scripts of recipes/, which is not a package."""

import importlib.util
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parent.parent / "recipes"


def load_script(name: str) -> ModuleType:
    """`recipes/{name}.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
