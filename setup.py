"""Lay recipes/ into the wheel as ropepatch/recipes; pyproject.toml says all else of the build."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Scripts measure the recipes in a clone and write into it; an installed package has no use for them.
CLONE_ONLY = ignore_patterns("*.py", "__pycache__")


class BuildWithRecipes(build_py):
    """Build as usual, then copy the recipes; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "ropepatch", "recipes")
            copytree(ROOT / "recipes", inside, ignore=CLONE_ONLY, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
