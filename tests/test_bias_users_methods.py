"""Methods that users write for score biases, and those whose scale depends on the length."""

from dataclasses import dataclass

import pytest
import torch
from tiny_bias_models import TRAINED_LENGTH, answers, bias_model, fresh_bias_model, inputs
from tiny_models import token_ids
from transformers import AutoModelForCausalLM, T5Config, T5ForSequenceClassification

from ropepatch import Method, load_pretrained, patch_info, patch_model, save_pretrained, verify
from ropepatch.errors import MethodError, UnsupportedMechanismError

IDS = token_ids(2, 3 * TRAINED_LENGTH)


@dataclass(frozen=True, kw_only=True)
class Broken(Method):
    """Makes what `made` says."""

    name = "broken"

    def alibi(self, geometry, length=None):
        return torch.full((2,), torch.nan)

    def relative(self, geometry, relative_position):
        return relative_position.abs()


@pytest.mark.parametrize(
    ("kind", "match"), [("bloom", r"slopes of shape \(2,\)"), ("t5", r"buckets .* from 0 to 128")]
)
def test_a_method_that_makes_no_bias_is_refused_before_anything_changes(kind, match):
    model = fresh_bias_model(kind)
    before = answers(model, IDS)
    with pytest.raises(MethodError, match=match):
        patch_model(model, Broken(factor=4))
    assert patch_info(model) is None
    assert torch.equal(answers(model, IDS), before)


def test_what_depends_on_the_length_is_refused_by_plain_transformers_at_factor_one_too(tmp_path):
    model = patch_model(fresh_bias_model("bloom"), "dynamic_linear", 1)
    expected = answers(model, IDS)
    assert not torch.allclose(expected, answers(bias_model("bloom"), IDS), atol=1e-2)
    save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=r"load it with ropepatch\.load_pretrained"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(answers(load_pretrained(tmp_path).eval(), IDS), expected)


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_a_method_of_another_mechanism_is_refused_before_its_options_are_asked_for(kind):
    with pytest.raises(UnsupportedMechanismError, match=r"'longrope' does not rescale"):
        patch_model(fresh_bias_model(kind), "longrope", 4)


def test_verify_sees_a_patch_of_the_decoder_of_a_classifier():
    sizes = {"d_model": 48, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 6}
    config = T5Config(vocab_size=96, n_positions=TRAINED_LENGTH, decoder_start_token_id=0, **sizes)
    torch.manual_seed(0)
    model = T5ForSequenceClassification(config).eval()
    verify(patch_model(model, "linear", 4, part="decoder"))


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_decoder_may_be_longer_than_what_it_reads(kind, padded):
    model = fresh_bias_model(kind)
    mask = torch.ones_like(IDS[:, :9])
    mask[1, :3] = 0 if padded else 1
    arguments = inputs(model, IDS[:, :9]) | {"decoder_input_ids": IDS, "attention_mask": mask}
    arguments["decoder_attention_mask"] = None
    with torch.no_grad():
        stock = model(**arguments).logits
        patched_logits = patch_model(model, "linear", 1)(**arguments).logits
    torch.testing.assert_close(patched_logits, stock, rtol=1e-5, atol=1e-5)
