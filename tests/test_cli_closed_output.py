"""Output whose reader has seen enough, as `head` has: no failure, and nothing is said of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).parent.parent / "recipes" / "checkpoints" / "tiny-llama"


@pytest.mark.parametrize(
    "arguments",
    [("inspect", CHECKPOINT), ("methods",), ("recipes",)],  # lines of text, and tables
    ids=lambda arguments: arguments[0],
)
def test_output_that_nobody_reads_on_ends_quietly(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "ropepatch.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
