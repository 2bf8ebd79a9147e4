"""The recipe that measures decoding loops: a loop reads what a forward pass reads."""

import pytest
import torch
from recipe_scripts import RECIPES, load_script
from tiny_models import fresh_model, logits, token_ids

from ropepatch import patch_info, patch_model


@pytest.fixture(scope="module")
def dynamic():
    return load_script("measure_dynamic")


@pytest.mark.parametrize("plans", [True, False])
@torch.no_grad()
def test_a_loop_gives_the_logits_of_a_forward_pass(dynamic, plans):
    ids = token_ids(2, 250)  # in five calls
    model = patch_model(fresh_model("llama"), "dynamic_ntk", 8) if plans else fresh_model("llama")
    found = dynamic.Loop(model, plans)(ids).logits
    expected = logits(model, ids, use_cache=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_stage_is_what_its_label_says(dynamic):
    checkpoint = str(RECIPES / "checkpoints" / "tiny-llama")
    for stage in dynamic.stages():
        model = stage.load(checkpoint)
        patch = patch_info(model)
        method = "none" if patch is None else patch.method
        assert method in stage.label or patch is None
        assert ("loop" in stage.label, "planned" in stage.label) == (stage.loops, stage.plans)
        rope_type = model.config.rope_parameters["rope_type"]
        assert ("transformers" in stage.label) == (patch is None and rope_type == "dynamic")
