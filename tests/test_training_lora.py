"""Adapters: what is trainable, and that tied embeddings stay tied."""

import pytest
import torch
from peft import PeftModelForSeq2SeqLM
from seq2seq_models import seq2seq_model
from tiny_models import KINDS, tiny_model, token_ids

from ropepatch import patch_model
from ropepatch.errors import ConfigError
from ropepatch.training.lora import add_lora
from ropepatch.training.sections import LoraRecipe


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def touch(model):
    """Change every trainable weight, as training would. Tied weights are one parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)


def assert_merging_keeps_logits(kind, recipe):
    model = add_lora(tiny_model(kind), recipe).eval()
    touch(model)
    ids = token_ids(2, 12)
    with torch.no_grad():
        before = model(ids).logits
        after = model.merge_and_unload()(ids).logits
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_the_same_logits(kind):
    assert_merging_keeps_logits(kind, LoraRecipe(train_embeddings=True, train_norms=True))


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi3"])
@pytest.mark.parametrize(
    ("targets", "inside", "outside"),
    [("attention", ("attn", "attention"), "mlp"), ("mlp", ("mlp",), "attn")],
)
def test_targets_choose_the_projections(kind, targets, inside, outside):
    names = trainable(add_lora(tiny_model(kind), LoraRecipe(targets=targets)))
    assert names
    assert all(any(part in name for part in inside) and outside not in name for name in names)


@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_targets_choose_the_projections_of_an_encoder_decoder_model(targets):
    model = add_lora(seq2seq_model(), LoraRecipe(targets=targets))
    attention = [("Attention." in name) for name in trainable(model)]
    assert attention
    assert set(attention) == {targets == "attention"}
    assert isinstance(model, PeftModelForSeq2SeqLM)


def test_trained_embeddings_of_an_encoder_decoder_model_are_refused():
    with pytest.raises(ConfigError, match=r"lora\.train_embeddings"):
        add_lora(seq2seq_model(), LoraRecipe(train_embeddings=True))


@pytest.mark.parametrize(
    ("preset", "adapters", "embeddings", "norms"),
    [
        ("lora", {"attn", "mlp"}, False, False),
        ("longlora", {"attn"}, True, True),
        ("longlora-norms", {"attn"}, False, True),
    ],
)
def test_a_preset_says_which_weights_train(preset, adapters, embeddings, norms):
    names = trainable(add_lora(tiny_model("llama"), LoraRecipe(preset=preset)))
    adapted = {name for name in names if "lora_" in name}
    assert {part for part in ("attn", "mlp") if any(part in name for name in adapted)} == adapters
    assert any("embed_tokens" in name for name in names) == embeddings
    assert any("norm" in name for name in names) == norms


def test_what_a_recipe_says_itself_goes_before_its_preset():
    recipe = LoraRecipe(preset="longlora", targets="mlp", train_embeddings=False)
    names = trainable(add_lora(tiny_model("llama"), recipe))
    assert not any("attn" in name or "embed_tokens" in name for name in names)
    assert any("norm" in name for name in names)


def test_a_recipe_without_an_adapter_takes_no_options_of_one():
    with pytest.raises(ValueError, match="preset full has no adapter; leave out r, train_norms"):
        LoraRecipe(preset="full", r=4, train_norms=True)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("variant", ["dora", "rslora"])
def test_variants_of_lora_merge_into_the_same_logits(kind, variant):
    assert_merging_keeps_logits(kind, LoraRecipe(**{variant: True}))


def test_rank_stabilised_updates_are_scaled_by_the_root_of_the_rank():
    def update(**options):
        model = add_lora(tiny_model("llama"), LoraRecipe(r=16, alpha=32, **options)).eval()
        module = model.base_model.model.model.layers[0].self_attn.q_proj
        for part in (module.lora_A, module.lora_B):
            torch.nn.init.constant_(part["default"].weight, 0.1)
        return module.get_delta_weight("default")

    torch.testing.assert_close(update(rslora=True), update() * 4.0)  # √16: alpha/√r over alpha/r


def test_the_head_gets_no_adapter():
    assert not any(
        "lm_head" in name for name in trainable(add_lora(tiny_model("llama"), LoraRecipe()))
    )


def test_trained_embeddings_of_an_untied_model_include_its_head():
    names = trainable(
        add_lora(tiny_model("llama", tie_word_embeddings=False), LoraRecipe(train_embeddings=True))
    )
    assert any("embed_tokens" in name for name in names)
    assert any("lm_head" in name for name in names)


def test_trained_embeddings_of_a_tied_model_stay_tied_through_the_merge():
    model = add_lora(
        tiny_model("llama", tie_word_embeddings=True), LoraRecipe(train_embeddings=True)
    )
    touch(model)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_norms_train_only_when_asked_for():
    def norms(recipe):
        return {name for name in trainable(add_lora(tiny_model("llama"), recipe)) if "norm" in name}

    assert norms(LoraRecipe()) == set()
    assert len(norms(LoraRecipe(train_norms=True))) == 5  # two in each of two layers, one final


def test_a_model_without_such_layers_is_refused():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp = torch.nn.Identity()
    with pytest.raises(ConfigError, match="has no such linear layers"):
        add_lora(model, LoraRecipe(targets="mlp"))


@pytest.mark.parametrize("method", ["kerple_log", "learned"])
def test_what_a_patch_puts_in_trains_beside_any_adapter(method):
    model = add_lora(patch_model(tiny_model("llama"), method, 2), LoraRecipe())
    own = {name for name in trainable(model) if method in name}
    assert own
    assert all("modules_to_save" in name for name in own)
    model(token_ids(2, 12), labels=token_ids(2, 12)).loss.backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in own)


def test_a_patch_without_parameters_adds_none_to_an_adapter():
    model = add_lora(patch_model(tiny_model("llama"), "sandwich", 2), LoraRecipe())
    assert all("lora_" in name for name in trainable(model))
