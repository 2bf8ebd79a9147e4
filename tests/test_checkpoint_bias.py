"""Models with score biases are saved and loaded with their patch, or refused by plain transformers."""

import pytest
import torch
from covering import each_value
from peft import LoraConfig, get_peft_model
from tiny_bias_models import (
    ALIBI_KINDS,
    KINDS,
    RELATIVE_KINDS,
    TRAINED_LENGTH,
    answers,
    assert_near,
    bias_model,
    fresh_bias_model,
)
from tiny_models import token_ids
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ropepatch import load_pretrained, patch_info, patch_model, save_pretrained, verify
from ropepatch.errors import BaseMismatchError, PatchVerificationError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
IDS = token_ids(2, 48)
METHODS = [(kind, method) for kind in ALIBI_KINDS for method in ("linear", "ntk", "dynamic_linear")]
METHODS += [(kind, "linear") for kind in RELATIVE_KINDS]
REFUSED = pytest.mark.parametrize(("kind", "method"), METHODS)


def saved(kind, method, directory, factor=4, **options):
    """A patched model's answers, and where it was saved."""
    model = patch_model(fresh_bias_model(kind), method, factor, **options)
    return answers(model, IDS), save_pretrained(model, directory / "model")


def auto(kind):
    return AutoModelForSeq2SeqLM if kind in RELATIVE_KINDS else AutoModelForCausalLM


@REFUSED
def test_a_scaled_bias_comes_back_bit_identical_and_can_be_saved_again(kind, method, tmp_path):
    expected, directory = saved(kind, method, tmp_path)
    loaded = load_pretrained(directory).eval()
    assert torch.equal(answers(loaded, IDS), expected)
    assert verify(loaded).method == method
    assert patch_info(loaded).max_position_embeddings == 4 * TRAINED_LENGTH
    again = save_pretrained(loaded, tmp_path / "again")
    assert torch.equal(answers(load_pretrained(again).eval(), IDS), expected)


@each_value(case=METHODS, options=[{}, {"attn_implementation": "eager"}])
def test_plain_transformers_refuses_a_scaled_bias_and_names_what_loads_it(case, options, tmp_path):
    kind, method = case
    directory = saved(kind, method, tmp_path)[1]
    for load in (auto(kind), type(fresh_bias_model(kind))):
        with pytest.raises(ValueError, match=r"load it with ropepatch\.load_pretrained"):
            load.from_pretrained(directory, **options)


@REFUSED
def test_what_reads_the_config_alone_is_not_refused(kind, method, tmp_path):
    """AutoTokenizer, and peft where it compares vocabularies."""
    directory = saved(kind, method, tmp_path)[1]
    assert AutoConfig.from_pretrained(directory).vocab_size == 96


@REFUSED
def test_saving_leaves_the_model_as_it_was(kind, method, tmp_path):
    model = patch_model(fresh_bias_model(kind), method, 4)
    # Saving by itself writes these two.
    model.config.dtype, model.config.architectures = model.dtype, [type(model).__name__]
    before, config = answers(model, IDS), model.config.to_dict()
    save_pretrained(model, tmp_path / "model")
    assert torch.equal(answers(model, IDS), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_log_buckets_load_natively_in_plain_transformers(kind, tmp_path):
    expected, directory = saved(kind, "log", tmp_path)
    plain = auto(kind).from_pretrained(directory).eval()
    assert plain.config.relative_attention_max_distance == 4 * 128
    assert_near(answers(plain, IDS), expected)
    found = verify(plain)
    assert (found.method, found.live) == ("log", "native")
    loaded = load_pretrained(directory).eval()
    assert torch.equal(answers(loaded, IDS), expected)
    assert verify(loaded).live == "patched"


def test_verify_fails_when_the_native_reach_is_not_live(tmp_path):
    directory = saved("t5", "log", tmp_path)[1]
    plain = AutoModelForSeq2SeqLM.from_pretrained(directory)
    plain.decoder.block[0].layer[0].SelfAttention.relative_attention_max_distance = 128
    with pytest.raises(PatchVerificationError, match="128"):
        verify(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_factor_one_is_saved_as_a_checkpoint_that_everybody_loads(kind, tmp_path):
    ids = IDS[:, :TRAINED_LENGTH]
    model = patch_model(fresh_bias_model(kind), "linear", 1)
    expected = answers(model, ids)
    plain = auto(kind).from_pretrained(save_pretrained(model, tmp_path / "model")).eval()
    if kind.startswith("falcon"):
        plain.config._attn_implementation = "sdpa"  # its eager code adds the bias twice
    assert_near(answers(plain, ids), expected)
    loaded = load_pretrained(tmp_path / "model").eval()
    assert torch.equal(answers(loaded, ids), expected)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("method", ["linear", "log"])
def test_a_part_survives_and_is_never_loaded_unscaled(part, method, tmp_path):
    """One config serves both parts, so not even log buckets of one part can be native."""
    expected, directory = saved("t5", method, tmp_path, part=part)
    with pytest.raises(ValueError, match=r"load it with ropepatch\.load_pretrained"):
        AutoModelForSeq2SeqLM.from_pretrained(directory)
    loaded = load_pretrained(directory).eval()
    assert torch.equal(answers(loaded, IDS), expected)
    assert patch_info(loaded).part == part


def test_an_encoder_alone_comes_back(tmp_path):
    model = patch_model(bias_model("t5", head="EncoderModel"), "linear", 4)
    expected = answers(model, IDS)
    loaded = load_pretrained(save_pretrained(model, tmp_path / "model")).eval()
    assert type(loaded).__name__ == "T5EncoderModel"
    assert torch.equal(answers(loaded, IDS), expected)


def test_a_length_that_only_the_user_knew_comes_back(tmp_path):
    model = bias_model("bloom", seq_length=None)
    patch_model(model, "dynamic_linear", 4, original_max_position_embeddings=20)
    loaded = load_pretrained(save_pretrained(model, tmp_path / "model")).eval()
    assert torch.equal(answers(loaded, IDS), answers(model, IDS))
    assert patch_info(loaded).original_max_position_embeddings == 20


def with_lora(model):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval()


@pytest.mark.parametrize(("kind", "method"), [("bloom", "dynamic_linear"), ("t5", "log")])
@pytest.mark.parametrize("base", ["given", "named"])
def test_an_adapter_patches_its_base(kind, method, base, tmp_path):
    fresh_bias_model(kind).save_pretrained(tmp_path / "base")
    model = with_lora(patch_model(auto(kind).from_pretrained(tmp_path / "base"), method, 4))
    directory = save_pretrained(model, tmp_path / "adapter")
    given = {"base_model": fresh_bias_model(kind)} if base == "given" else {}
    loaded = load_pretrained(directory, **given).eval()
    assert torch.equal(answers(loaded, IDS), answers(model, IDS))
    assert verify(loaded).method == method


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_an_adapter_whose_base_was_saved_patched_finds_it(kind, tmp_path):
    saved(kind, "linear", tmp_path)
    model = with_lora(load_pretrained(tmp_path / "model"))
    directory = save_pretrained(model, tmp_path / "adapter")
    assert torch.equal(answers(load_pretrained(directory).eval(), IDS), answers(model, IDS))


def test_an_adapter_for_one_part_does_not_go_on_a_base_with_the_other(tmp_path):
    model = with_lora(patch_model(fresh_bias_model("t5"), "log", 4, part="encoder"))
    directory = save_pretrained(model, tmp_path / "adapter")
    base = patch_model(fresh_bias_model("t5"), "log", 4, part="decoder")
    with pytest.raises(BaseMismatchError):
        load_pretrained(directory, base_model=base)
    assert patch_info(base).part == "decoder"
