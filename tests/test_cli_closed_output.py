"""Output whose reader has seen enough, as `head` has: no failure, and nothing is said of it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments",
    [("recipes", "copy", "checkpoints/tiny-llama"), ("recipes",)],
    ids=["lines", "table"],
)
def test_output_that_nobody_reads_on_ends_quietly(arguments, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "ropepatch.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
