"""The recipe that measures families: nothing left out unsaid, differences paired."""

from types import SimpleNamespace

import numpy as np
import pytest
from recipe_scripts import load_script
from seq2seq_models import seq2seq_model
from tiny_models import tiny_model

from ropepatch import list_methods


@pytest.fixture(scope="module")
def families():
    return load_script("measure_families")


def test_every_scaling_method_is_measured_or_said_to_be_left_out(families):
    model = tiny_model("llama")
    stages, skipped = families.stages_of(model)
    measured = {stage.patch["method"] for stage in stages if stage.patch}
    assert [line.split("`")[1] for line in skipped] == ["longrope"]
    assert measured | {"longrope"} == set(list_methods(model, replacing=False))


def test_a_method_that_depends_on_the_length_is_measured_at_one_factor(families):
    factors = [stage.patch["factor"] for stage in families.method_stages("dynamic_ntk", False)]
    assert factors == [8]
    factors = [stage.patch["factor"] for stage in families.method_stages("yarn", False)]
    assert factors == [2, 4, 8]


def test_encoder_and_decoder_are_also_scaled_alone(families):
    stages, _ = families.stages_of(seq2seq_model())
    labels = [stage.label for stage in stages]
    for label in ("unpatched", "log ×4", "log ×4, encoder only", "log ×4, decoder only"):
        assert labels.count(label) == 1


def test_a_difference_is_paired_by_window(families):
    # Windows differ by more than the methods do; each window's own difference is 1.
    means = {
        "unpatched": {256: np.array([1.0, 5.0, 9.0])},
        "m ×2": {256: np.array([2.0, 6.0, 10.0])},
    }
    windows = SimpleNamespace(documents=np.array([0, 1, 2]))
    *_, last = families.table(means, windows, [256])
    assert last.startswith("| m ×2 | 6.000 [")
    assert last.endswith("<br>+1.000 [+1.000,+1.000] |")
