"""Settings of all tests."""

import os
import tempfile

import torch

# The models are so small that a second thread costs more than it brings.
torch.set_num_threads(1)

# Tokens that an earlier session of the tests made prove nothing about this one.
_CACHE = tempfile.TemporaryDirectory()
os.environ["ROPEPATCH_CACHE"] = _CACHE.name
