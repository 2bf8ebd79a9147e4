"""Sequences of which each device has a part: which models and methods can be right, and who refuses.

Nothing here runs on several devices. What torch and accelerate do to positions and masks there is
pinned, and done by hand to one process.
"""

import pytest
import torch
from accelerate.big_modeling import _attach_context_parallel_hooks
from tiny_bias_models import fresh_bias_model
from tiny_models import fresh_model, logits, tiny_model, token_ids
from torch.distributed.tensor.experimental._context_parallel import _load_balancer

from ropepatch import patch_model
from ropepatch.errors import ConfigError
from ropepatch.training.distributed import refuse_parts
from ropepatch.training.sections import DistributedRecipe

LENGTH = 64  # of 32 trained
RINGS = DistributedRecipe(fsdp=True, context_parallel=2)
ULYSSES = DistributedRecipe(sequence_parallel=2)
PLAIN = [{"input_ids": torch.arange(LENGTH), "labels": torch.arange(LENGTH)}]
ARCHITECTURES = ["llama", "mistral", "qwen3", "glm4", "cohere", "phi", "gpt_neox", "smollm3"]
METHODS = {
    "linear": {},
    "ntk": {},
    "yarn": {},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "truncated": {},
}


def head_tail(length, devices):
    """Positions in the order in which torch deals them out: device i has pieces i and 2 · devices − 1 − i."""
    pieces = torch.arange(length).chunk(2 * devices)
    order = [(pieces[i], pieces[2 * devices - 1 - i]) for i in range(devices)]
    return torch.cat([piece for pair in order for piece in pair])


@pytest.mark.parametrize("devices", [2, 4])
def test_torch_deals_out_head_and_tail(devices):
    balancer = _load_balancer._HeadTailLoadBalancer(LENGTH, devices, torch.device("cpu"))
    assert torch.equal(balancer._generate_indices()[0], head_tail(LENGTH, devices))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rotary_methods_are_right_for_tokens_out_of_order(architecture, method):
    model = patch_model(fresh_model(architecture), method, factor=4, **METHODS[method])
    ids, order = token_ids(2, LENGTH), head_tail(LENGTH, 2)
    sees = (order[:, None] >= order[None, :])[None, None]  # (1, 1, query, key)
    position_ids = order.expand(2, -1)
    shuffled = logits(model, ids[:, order], position_ids=position_ids, attention_mask=sees)
    torch.testing.assert_close(shuffled, logits(model, ids)[:, order], rtol=0, atol=1e-4)


def test_accelerate_drops_masks_of_modules_by_their_name():
    told = {}

    def tell(module, args, kwargs):
        told.update(mask=kwargs["attention_mask"], is_causal=kwargs.get("is_causal"))

    for architecture, name, dropped in (
        ("llama", "model.layers.0.self_attn", True),
        ("gpt_neox", "gpt_neox.layers.0.attention", False),
    ):
        model = fresh_model(architecture)
        _attach_context_parallel_hooks(model)
        model.get_submodule(name).register_forward_pre_hook(tell, with_kwargs=True)
        logits(model, token_ids(1, 8), attention_mask=torch.tensor([[0] * 3 + [1] * 5]))
        assert (told["mask"] is None) == dropped
        assert told["is_causal"] == (True if dropped else None)


@pytest.mark.parametrize("recipe", [RINGS, ULYSSES])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "cohere"])
def test_rotary_models_with_static_methods_are_let_in(architecture, recipe):
    refuse_parts(recipe, fresh_model(architecture), PLAIN)
    refuse_parts(recipe, patch_model(fresh_model(architecture), "yarn", factor=4), PLAIN)


@pytest.mark.parametrize("recipe", [RINGS, ULYSSES])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: fresh_bias_model("bloom"), "bloom keeps its positions in the mask"),
        (
            lambda: patch_model(fresh_bias_model("mpt"), "linear", factor=4),
            "mpt keeps its positions in the mask",
        ),
        (lambda: fresh_model("gemma3_text"), "window alone"),
        (lambda: tiny_model("mistral", sliding_window=16), "window alone"),
        (
            lambda: patch_model(fresh_model("llama"), "dynamic_yarn", factor=4),
            "'dynamic_yarn' scales by the length",
        ),
        (
            lambda: tiny_model(
                "llama",
                rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
            ),
            "own 'dynamic' scales by the length",
        ),
    ],
)
def test_models_that_cannot_be_right_in_parts_are_refused(model, reason, recipe):
    with pytest.raises(ConfigError, match=reason):
        refuse_parts(recipe, model(), PLAIN)


def test_a_model_whose_masks_accelerate_would_not_find_is_refused():
    with pytest.raises(ConfigError, match="does not find the attention of gpt_neox"):
        refuse_parts(RINGS, fresh_model("gpt_neox"), PLAIN)
    refuse_parts(ULYSSES, fresh_model("gpt_neox"), PLAIN)


def test_models_that_share_sequences_with_no_one_are_not_asked():
    refuse_parts(DistributedRecipe(fsdp=True), fresh_bias_model("bloom"), PLAIN)
    refuse_parts(DistributedRecipe(), fresh_bias_model("t5"), PLAIN)


def test_an_embedding_that_two_stacks_share_is_not_sharded():
    with pytest.raises(ConfigError, match=r"embedding that the stacks of t5 share"):
        refuse_parts(DistributedRecipe(fsdp=True), fresh_bias_model("t5"), PLAIN)


def test_sequences_with_a_mask_of_their_own_are_refused():
    packed = [{**PLAIN[0], "attention_mask": torch.ones(LENGTH)}]
    with pytest.raises(ConfigError, match=r"bring their attention_mask"):
        refuse_parts(RINGS, fresh_model("llama"), packed)
