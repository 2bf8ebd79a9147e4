"""Settings of all tests."""

import gc
import os
import signal
import sys
import tempfile

import torch

# The models are so small that a second thread costs more than it brings.
torch.set_num_threads(1)

# Tokens that an earlier session of the tests made prove nothing about this one.
_CACHE = tempfile.TemporaryDirectory()
os.environ["ROPEPATCH_CACHE"] = _CACHE.name

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Keep what imports and collection made out of the garbage collector, which reads it all again and again.

    Every training run ends with a full collection.
    """
    _draw_no_loss_curves()
    gc.collect()
    gc.freeze()


def _draw_no_loss_curves():
    """Leave out the pixels of the curve that each checkpoint draws; `drawn_loss_curves` puts them back."""
    curves = sys.modules.get("ropepatch.training.loss_curve")
    if curves is not None:

        class Undrawn(curves.Figure):
            def savefig(self, file, **options):
                file.write(b"not drawn")

        curves.Figure = Undrawn
