"""Methods that users write: what is wrong with them is said before the model is touched."""

from dataclasses import dataclass

import pytest
import torch
from tiny_models import fresh_model, logits, token_ids

from ropepatch import Method, RotaryFrequencies, load_pretrained, patch_model, patched
from ropepatch import save_pretrained as save
from ropepatch.errors import MethodError, UnknownMethodError
from ropepatch.methods import register_method, registry
from ropepatch.patch import patch_info, unpatch_model

IDS = token_ids(2, 24)
MISTAKES = {
    "a tensor": lambda geometry: geometry.inv_freq,
    "too few": lambda geometry: RotaryFrequencies(geometry.inv_freq[:3]),
    "no numbers": lambda geometry: RotaryFrequencies(geometry.inv_freq * float("nan")),
}


@pytest.fixture
def own(monkeypatch):
    """Registers a method whose frequencies come from a function, for one test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    def define(make):
        @register_method("own")
        @dataclass(frozen=True, kw_only=True)
        class Own(Method):
            def rotary(self, geometry, length=None):
                return make(geometry)

    return define


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_method_is_named_and_the_model_left_as_it_was(own, mistake):
    own(MISTAKES[mistake])
    model = fresh_model("llama")
    before = logits(model, IDS)
    with pytest.raises(MethodError, match="'own'"):
        patch_model(model, "own", 4)
    assert torch.equal(logits(model, IDS), before)


def test_a_checkpoint_of_an_unregistered_method_says_what_to_import(own, tmp_path, monkeypatch):
    own(lambda geometry: RotaryFrequencies(geometry.inv_freq / 2))
    save(patch_model(fresh_model("llama"), "own", 4), tmp_path / "saved")
    monkeypatch.delitem(registry._METHODS, "own")
    with pytest.raises(UnknownMethodError, match=r"saved with 'own'.*import the module"):
        load_pretrained(tmp_path / "saved")


def test_a_body_that_unpatches_by_itself_ends_well():
    model = fresh_model("llama")
    with patched(model, "linear", 4):
        unpatch_model(model)
    assert patch_info(model) is None
