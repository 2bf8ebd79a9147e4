"""Models whose truth is known come out as what they are: equal, broken, blind beyond a window."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from ropepatch.corpus import load_documents
from ropepatch.evals import measure, plan_evaluation
from ropepatch.evals.verdict import judge

CHECKPOINT = Path(__file__).parent.parent / "recipes/checkpoints/tiny-llama"
TRAINED = 256
WINDOW = 16  #: tokens that a layer sees; four layers reach 4 · 15 tokens back


@pytest.fixture(scope="module")
def plan():
    return plan_evaluation(
        AutoTokenizer.from_pretrained(CHECKPOINT),
        load_documents("stdlib", "held_out"),
        lengths=(128, 256, 512),
        trained_length=TRAINED,
        targets=32,
        windows=12,
        prompts=16,
    )


@pytest.fixture
def model():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def base(plan):
    return measure(AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32), plan, "a")


def test_the_same_model_is_not_told_from_itself(model, plan, base):
    assert judge(base, measure(model, plan, "again")).word == "no evidence"


def test_a_loss_of_bits_is_not_told_from_the_model(model, plan, base):
    # Weights of half precision move each loss by a little, this way and that.
    assert judge(base, measure(model.bfloat16().float(), plan, "bfloat16")).word == "no evidence"


def test_wrong_frequencies_are_a_regression(model, plan, base):
    model.model.rotary_emb.inv_freq /= 8
    verdict = judge(base, measure(model, plan, "wrong"))
    assert verdict.word == "regressed"
    assert verdict.price.low > 0.03
    assert verdict.reasons[0].startswith("worse: loss")


def test_a_model_with_a_window_is_flat_and_blind_beyond_it(model, plan, base):
    config = MistralConfig(**{**model.config.to_dict(), "sliding_window": WINDOW})
    windowed = MistralForCausalLM(config).eval()
    windowed.load_state_dict(model.state_dict())
    evaluation = measure(windowed, plan, "windowed")
    for length in (256, 512):
        gain = evaluation.context_gain(length)
        assert (gain.low, gain.high) == pytest.approx((0.0, 0.0), abs=1e-5)
        far = evaluation.score("kv", length, beyond=4 * WINDOW)
        assert far.low <= evaluation.chance("kv")
    verdict = judge(base, evaluation)
    assert verdict.unused.length == 128
    assert verdict.reasons[-1] == "uses no context beyond 128 tokens"
    assert base.score("kv", 256, beyond=4 * WINDOW).low > evaluation.chance("kv")
