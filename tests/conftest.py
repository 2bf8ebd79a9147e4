"""Settings of all tests."""

import gc
import os
import signal
import sys
import tempfile

import pytest
import torch

# `make test-fast` leaves out what is marked `thorough` here: files whose tests take seconds each, as they
# train, compile, start processes or read much text, and all models of a contract but one of a mechanism.
_SLOW = """
benchmarks biased_attention biased_attention_training cli cli_closed_output cli_compare cli_train
compiled_loops contract_companions contract_replacement_memory conversions core_install
evals_answers evals_browser evals_calibration evals_long_ppl evals_page evals_pilot evals_samples
evals_statistics evals_tasks extrapolation fitting lm_eval measure_dynamic measure_families pictures precision
recipes shifted_sparse_attention stock_defects training_before_after training_checkpoints
training_chunked_loss training_distributed training_full_disk training_held_out training_inputs
training_interrupts training_killed training_lengths training_memory training_not_finite
training_out_of_memory training_plan training_preview training_refusals training_reporters
training_requirements training_resume training_run_directory training_run_record training_runner
training_several_devices training_stages training_token_cache
"""
SLOW_FILES = frozenset(f"test_{name}.py" for name in _SLOW.split())
REPRESENTATIVES = frozenset({"llama", "bloom", "t5", "gpt2"})

# The models are so small that a second thread costs more than it brings.
torch.set_num_threads(1)

# Tokens that an earlier session of the tests made prove nothing about this one.
_CACHE = tempfile.TemporaryDirectory()
os.environ["ROPEPATCH_CACHE"] = _CACHE.name

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Mark what `make test-fast` leaves out, and begin with it, so that processes end together."""
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)
    for item in items:
        if item.path.name in SLOW_FILES or _model(item) not in {None, *REPRESENTATIVES}:
            item.add_marker(pytest.mark.thorough)


def _model(item):
    """The kind of model that a test of a contract is about; None for other tests."""
    if not item.path.name.startswith("test_contract_") or not hasattr(item, "callspec"):
        return None
    given = item.callspec.params
    return given.get("kind") or getattr(given.get("cell"), "kind", None)


def pytest_collection_finish():
    """Keep what imports and collection made out of the garbage collector, which reads it all again and again.

    Every training run ends with a full collection.
    """
    _draw_no_loss_curves()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # tests leave little, and make much that needs no collector


def _draw_no_loss_curves():
    """Leave out the pixels of the curve that each checkpoint draws; `drawn_loss_curves` puts them back."""
    curves = sys.modules.get("ropepatch.training.loss_curve")
    if curves is not None:

        class Undrawn(curves.Figure):
            def savefig(self, file, **options):
                file.write(b"not drawn")

        curves.Figure = Undrawn
