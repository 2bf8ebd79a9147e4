"""Candidates on one base: swapped in and out without a trace, refused before anything runs."""

import json

import pytest
import torch
from killed_evaluation import DOCUMENTS
from peft import LoraConfig, get_peft_model
from seq2seq_models import seq2seq_model
from tiny_bias_models import bias_model
from tiny_models import tiny_model

from ropepatch import patch_info, patch_model, save_pretrained
from ropepatch.checkpoint import SIDECAR
from ropepatch.corpus import train_tokenizer
from ropepatch.errors import ConfigError, SidecarError
from ropepatch.evals import plan_evaluation, scored_tokens
from ropepatch.evals.candidates import (
    Candidate,
    check_adapter,
    measure_candidates,
    method_candidates,
)
from ropepatch.evals.perplexity_plan import plan_perplexity
from ropepatch.evals.samples import SampleStore

IDS = torch.arange(3, 131)[None] % 90


def llama():
    return tiny_model("llama", vocab_size=420)


@pytest.fixture(scope="module")
def plan():
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=420, keys=10, values=10)
    return plan_evaluation(
        tokenizer, DOCUMENTS, lengths=(32, 64), trained_length=32, targets=16, windows=6, prompts=4
    )


@pytest.fixture
def adapter(tmp_path):
    """On YaRN ×4, with embeddings that were trained whole."""
    model = patch_model(llama(), "yarn", 4)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens"])
    tuned = get_peft_model(model, config)
    torch.manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05)
    save_pretrained(tuned, tmp_path / "adapter")
    return tmp_path / "adapter", tuned.eval()(IDS).logits


def unused(source):
    raise AssertionError(f"{source} is not to be loaded")


def test_every_method_and_factor_is_measured_on_the_one_base(plan):
    base = llama()
    before = base(IDS).logits
    candidates = [Candidate("base"), *method_candidates(base, ["yarn", "pi"], [2, 4], 32)]
    stages = measure_candidates(base, candidates, plan, unused)
    labels = [stage.label for stage in stages]
    assert labels == ["base", "yarn ×2", "yarn ×4", "linear ×2", "linear ×4"]
    patches = [stage.configuration["patch"] for stage in stages]
    assert patches[0] is None
    assert [(p["method"], p["options"]["factor"]) for p in patches[1:]] == [
        ("yarn", 2.0), ("yarn", 4.0), ("linear", 2.0), ("linear", 4.0),
    ]  # fmt: skip
    assert len({stage.protocol for stage in stages}) == 1
    assert patch_info(base) is None
    assert torch.equal(base(IDS).logits, before)


@pytest.mark.parametrize(
    ("make", "method"),
    [(lambda: bias_model("bloom"), "linear"), (lambda: seq2seq_model(vocab_size=420), "log")],
)
def test_models_with_score_biases_are_compared_too(plan, make, method):
    base = make()
    if base.config.vocab_size < 420:
        base.resize_token_embeddings(420)
    candidates = [Candidate("base"), *method_candidates(base, [method], [2], 32)]
    first, second = measure_candidates(base, candidates, plan, unused)
    assert first.target_loss(64).value != second.target_loss(64).value


def test_all_methods_that_do_not_fit_are_listed_at_once():
    with pytest.raises(ConfigError) as refused:
        method_candidates(llama(), ["yarn", "log", "yran", "longrope"], [4], 32)
    said = str(refused.value)
    assert said.startswith("nothing was measured: ")
    assert "'log' is not for LlamaForCausalLM" in said
    assert "did you mean 'yarn'" in said
    assert "'longrope' needs" in said


def test_an_adapter_is_measured_on_the_base_and_leaves_no_trace(adapter):
    directory, expected = adapter
    base = llama()
    before, names = base(IDS).logits, dict(base.named_modules()).keys()
    with Candidate("tuned", source=str(directory)).opened(base, unused, 32) as model:
        torch.testing.assert_close(model.eval()(IDS).logits, expected)
    assert torch.equal(base(IDS).logits, before)
    assert dict(base.named_modules()).keys() == names
    assert patch_info(base) is None
    assert not hasattr(base, "peft_config")
    assert all(parameter.requires_grad for parameter in base.parameters())
    with Candidate("yarn", method="yarn", factor=2.0).opened(base, unused, 32) as model:
        assert patch_info(model).factor == 2


def test_a_failing_body_leaves_no_adapter_behind(adapter):
    base = llama()
    before = base(IDS).logits
    with (
        pytest.raises(RuntimeError, match="stop"),
        Candidate("tuned", source=str(adapter[0])).opened(base, unused, 32),
    ):
        raise RuntimeError("stop")
    assert torch.equal(base(IDS).logits, before)


def test_an_adapter_without_its_sidecar_is_refused(adapter):
    directory, _ = adapter
    check_adapter(directory)
    (directory / SIDECAR).unlink()
    with pytest.raises(SidecarError, match="the patch that the adapter was trained on is unknown"):
        check_adapter(directory)


def test_an_adapter_with_an_edited_sidecar_is_refused(adapter):
    path = adapter[0] / SIDECAR
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "method": "linear"}))
    with pytest.raises(SidecarError, match="was edited"):
        check_adapter(adapter[0])


def test_progress_names_the_candidate_and_rises_to_one(plan):
    base, told = llama(), []
    candidates = [Candidate("base"), *method_candidates(base, ["yarn"], [2], 32)]
    measure_candidates(base, candidates, plan, unused, tell=lambda *each: told.append(each))
    assert list(dict.fromkeys(label for label, _ in told)) == ["base", "yarn ×2"]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_reading_for_long_ppl_and_its_judge_are_shares_of_the_work(plan, monkeypatch):
    # Of documents of 250 tokens, the judge reads a window of 32 and one of 10 every 2 tokens.
    monkeypatch.setattr(scored_tokens, "TOKENS_PER_BATCH", 256)
    base, told = llama(), []
    candidates = [Candidate("base"), *method_candidates(base, ["yarn"], [2], 32)]
    texts = plan_perplexity(
        plan.tokenizer, DOCUMENTS[:2], protocol="yarn-truncate", lengths=(32, 64)
    )

    def shares_told(**plans):
        told.clear()
        measure_candidates(
            base, candidates, plan, unused, tell=lambda *each: told.append(each), **plans
        )
        shares = [share for _, share in told]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
        return [share for label, share in told if label == "base"]

    def work(windows, length):
        return windows * length * (1 + length / 2048)

    own = work(6, 32) + work(6, 64) + work(4, 32) + work(4, 64)
    # Of 64 tokens: as many windows as steps of 2 fit behind the first, and the first.
    judging = 2 * (work(17, 32) + work(28, 10))
    shares = shares_told(key_tokens=texts)
    total = 2 * own + judging + 2 * work(2, 64)
    for done in (own, own + judging, own + judging + work(2, 64)):
        assert min(abs(share - done / total) for share in shares) < 1e-9
    assert len({share for share in shares if own < share * total < own + judging}) >= 4
    # What both read is read once.
    both = shares_told(key_tokens=texts, perplexity=texts)
    assert both[-1] == pytest.approx(shares[-1])


def test_what_an_earlier_run_measured_is_no_share_of_the_work(plan, tmp_path):
    base, told = llama(), []
    candidates = [Candidate("base"), *method_candidates(base, ["yarn"], [2], 32)]

    def measured(some):
        told.clear()
        store = SampleStore(tmp_path, {"models": {}})
        telling = {"tell": lambda *each: told.append(each), "samples": store.candidate}
        measure_candidates(base, some, plan, unused, **telling)

    measured(candidates[:1])
    measured(candidates)
    assert {share for label, share in told if label == "base"} == {0.0}
    assert [share for label, share in told if label == "yarn ×2"][-1] == 1.0
    measured(candidates)
    assert {share for label, share in told if label == "yarn ×2"} == {1.0}
