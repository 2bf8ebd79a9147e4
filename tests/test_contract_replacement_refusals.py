"""Replacements that cannot be, and patches that something has undone: said clearly, nothing changed."""

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from replacement_cells import IDS, answers, fresh
from tiny_models import tiny_model, token_ids

from ropepatch import patch_info, patch_model, verify
from ropepatch.errors import (
    AlreadyScaledError,
    LengthError,
    MethodOptionError,
    PatchError,
    UnsupportedMechanismError,
    UnsupportedModelError,
)

pytestmark = pytest.mark.filterwarnings("ignore:(fan_in_fan_out|`is_gradient)")
SHORT = IDS[:, :30]
SMALL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def rotary_falcon():
    sizes = {"hidden_size": 64, "ffn_hidden_size": 48, "num_hidden_layers": 2}
    config = transformers.FalconConfig(
        **SMALL, **sizes, num_attention_heads=4, max_position_embeddings=32, alibi=False
    )
    return transformers.FalconForCausalLM(config).eval()


def gpt_oss():
    sizes = {"head_dim": 16, "num_local_experts": 4, "sliding_window": 16}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    return tiny_model("gpt_oss", attention="eager", rope_parameters=rope, **sizes)


def deepseek_v3():
    latent = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8}
    heads = {"qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
    experts = {"n_routed_experts": 4, "first_k_dense_replace": 10, "n_group": 1, "topk_group": 1}
    return tiny_model("deepseek_v3", **latent, **heads, **experts)


REFUSED = {
    rotary_falcon: r"FalconForCausalLM computes attention itself, not through .* interface",
    gpt_oss: r"GptOssAttention has learned sinks .* cannot be combined with '{method}'",
    deepseek_v3: r"values of 8 channels and queries of 16 \(latent attention\).*'{method}'",
}


def assert_refused(model, error, match, *arguments, **options):
    """The error, and a model that is bit-identical to what it was."""
    before, config = answers(model, SHORT), copy.deepcopy(model.config.to_dict())
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    with pytest.raises(error, match=match):
        patch_model(model, *arguments, **options)
    assert torch.equal(answers(model, SHORT), before)
    assert model.config.to_dict() == config
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert list(model.state_dict()) == keys
    assert patch_info(model) is None


@pytest.mark.parametrize("method", ["alibi", "kerple_log", "xpos"])
@pytest.mark.parametrize("build", REFUSED)
def test_attention_that_cannot_carry_a_method_is_refused_with_what_and_why(build, method):
    match = REFUSED[build].format(method=method)
    assert_refused(build(), UnsupportedModelError, f"{match}.*nothing was patched", method, 2)


def test_learned_sinks_and_rotation_that_goes_are_no_contradiction():
    """What needs no attention of ours is not refused."""
    model = patch_model(gpt_oss(), "sinusoidal", 2)
    assert verify(model).method == "sinusoidal"


def test_xpos_is_refused_where_pairs_cannot_be_told():
    model = fresh("llama")
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight.data.zero_()
    attention.q_proj.weight.data.zero_()  # what rotation does to zeros cannot be seen
    match = (
        r"which channels of 'model\.layers\.1\.self_attn' are rotated together could not be told"
    )
    assert_refused(model, UnsupportedModelError, match, "xpos", 2)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_one_set_of_heads_for_each_direction_needs_an_even_number(kind):
    if kind == "bert":
        sizes = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1}
        config = transformers.BertConfig(
            vocab_size=96, num_attention_heads=3, max_position_embeddings=32, **sizes
        )
        model = transformers.BertForMaskedLM(config).eval()
    else:
        sizes = {"d_model": 48, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 3}
        config = transformers.T5Config(**SMALL, **sizes, n_positions=32, decoder_start_token_id=0)
        model = transformers.T5ForConditionalGeneration(config).eval()
    match = r"num_heads is 3; allowed: an even number for directions='split'"
    assert_refused(model, MethodOptionError, match, "alibi", 2, directions="split")


WRONG = [
    (
        "llama",
        "log",
        UnsupportedMechanismError,
        "does not rescale rotary.*methods that replace: alibi",
    ),
    ("bloom", "alibi", UnsupportedMechanismError, "'alibi' does not replace ALiBi"),
    ("t5", "sinusoidal", UnsupportedMechanismError, "does not replace relative buckets"),
    ("gpt2", "yarn", UnsupportedMechanismError, "'yarn' does not rescale tables of positions"),
    ("bert", "xpos", UnsupportedMechanismError, "does not replace tables of positions"),
]


@pytest.mark.parametrize(("kind", "method", "error", "match"), WRONG)
def test_a_method_that_is_not_for_a_model_names_those_that_are(kind, method, error, match):
    assert_refused(fresh(kind), error, match, method, 2)


OPTIONS = [
    (
        "alibi",
        {"slopes": "steep"},
        "slopes is 'steep'; allowed: 'geometric', 'trainable' or 'random'",
    ),
    (
        "kerple_log",
        {"layer_types": ["full_attention"]},
        "layer_types does not apply with 'kerple_log', which replaces the positions of all layers",
    ),
    ("kerple_log", {"part": "encoder"}, "part does not apply to Llama"),
    ("kerple_log", {"attention": "folded"}, "folds ALiBi's own slopes"),
    ("kerple_log", {"attention": "fast"}, "attention is 'fast'; allowed: auto"),
    ("sandwich", {"per_layer": True}, "'sandwich' with these options has no parameters"),
    ("alibi", {"per_layer": True}, "'alibi' with these options has no parameters"),
]


@pytest.mark.parametrize(("method", "options", "match"), OPTIONS)
def test_a_wrong_option_is_named_with_what_is_allowed(method, options, match):
    assert_refused(fresh("llama"), MethodOptionError, match, method, 2, **options)


@pytest.mark.parametrize(
    ("kind", "method"), [("gpt2", "linear"), ("gpt2", "nope"), ("llama", "sinusoidal")]
)
def test_a_way_of_attention_is_refused_where_attention_stays_stock(kind, method):
    match = f"attention does not apply .* with '{method}'; leave it out"
    assert_refused(fresh(kind), MethodOptionError, match, method, 2, attention="eager")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_attention_of_ours_without_a_patch_says_so(kind):
    model = fresh(kind)
    model.set_attn_implementation("ropepatch")
    with pytest.raises(PatchError, match="carries no patch"):
        answers(model, SHORT)


@pytest.mark.parametrize("method", ["linear", "sinusoidal", "kerple_log", "nope"])
@pytest.mark.parametrize("how", ["modules_to_save", "target_modules"])
def test_a_table_that_an_adapter_trains_is_not_put_out_of_use(method, how):
    options = {"target_modules": ["c_attn"], **{how: ["wpe"]}}
    model = get_peft_model(fresh("gpt2"), LoraConfig(r=2, fan_in_fan_out=True, **options)).eval()
    before = answers(model.get_base_model(), SHORT)
    match = r"adapter trains the table of positions 'transformer\.wpe'.*then train a new one"
    with pytest.raises(UnsupportedModelError, match=match):
        patch_model(model, method, 2)
    assert torch.equal(answers(model.get_base_model(), SHORT), before)
    assert patch_info(model) is None


@pytest.mark.parametrize("method", ["linear", "sinusoidal", "kerple_log", "nope"])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_an_adapter_that_trains_the_embeddings_of_tokens_is_no_hindrance(kind, method):
    words = "wte" if kind == "gpt2" else "word_embeddings"
    linear = ["c_attn"] if kind == "gpt2" else ["query"]
    config = LoraConfig(r=2, target_modules=linear, modules_to_save=[words])
    model = patch_model(get_peft_model(fresh(kind), config).eval(), method, 2)
    expected = answers(patch_model(fresh(kind), method, 2))
    assert torch.equal(answers(model.get_base_model()), expected)


def test_a_checkpoint_that_scales_by_its_own_config_is_refused():
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    model = tiny_model("llama", rope_parameters=scaling)
    assert_refused(model, AlreadyScaledError, "replace=True", "kerple_log", 2)


@pytest.mark.parametrize(("kind", "options"), [("llama", {}), ("t5", {"part": "encoder"})])
def test_learned_positions_end_with_their_rows(kind, options):
    model = patch_model(fresh(kind), "learned", 2, **options)
    assert answers(model, token_ids(1, 64)).isfinite().all()
    with pytest.raises(LengthError, match=r"position 64 .* learned has 64 positions; patch"):
        answers(model, token_ids(1, 65))


POSITIONED = [("llama", "learned"), ("llama", "sinusoidal"), ("gpt2", "sinusoidal")]
POSITIONED += [("gpt2", "linear"), ("llama", "scaled_sinusoidal")]


@pytest.mark.parametrize(("kind", "method"), POSITIONED)
def test_positions_that_are_none_are_refused_saying_which(kind, method):
    model, ids, places = patch_model(fresh(kind), method, 2), token_ids(1, 6), torch.arange(6)[None]
    with pytest.raises(LengthError, match=r"position -2 is asked for.* has none before 0"):
        answers(model, ids, position_ids=places - 2)
    with pytest.raises(LengthError, match=r"of torch\.float32; allowed: whole numbers"):
        answers(model, ids, position_ids=places.float())


def test_a_stack_that_has_something_of_the_methods_name_is_refused():
    model = fresh("llama")
    model.model.kerple_log = torch.nn.Linear(2, 2)
    match = r"LlamaModel has an attribute 'kerple_log' already; nothing was patched"
    assert_refused(model, UnsupportedModelError, match, "kerple_log", 2)


def test_cross_attention_that_cannot_be_told_from_its_own_is_refused():
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}
    config = transformers.GPT2Config(**SMALL, **sizes, add_cross_attention=True)
    model = transformers.GPT2LMHeadModel(config).eval()
    assert_refused(model, UnsupportedModelError, "has cross-attention", "kerple_log", 2)
