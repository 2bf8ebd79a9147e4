"""Checkpoints that were saved patched load right in plain transformers, or fail loudly there."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import KINDS, fresh_model, logits, tiny_config, token_ids
from tiny_multimodal import gemma3, llava
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from ropepatch import (
    list_methods,
    load_pretrained,
    make_method,
    patch_info,
    patch_model,
    save_pretrained,
    unpatch_model,
    verify,
)
from ropepatch.errors import CheckpointError, SidecarError

IDS = token_ids(2, 60)
OPTIONS = {
    "base_change": {"new_base": 3e6},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]},
}
STATIC, LENGTH_DEPENDENT = [], []
for name in list_methods("rotary", replacing=False):
    dependent = make_method(name, **OPTIONS.get(name, {})).length_dependent
    (LENGTH_DEPENDENT if dependent else STATIC).append(name)
VARIANTS = {
    "yarn, no truncation": ("yarn", {"truncate": False}),
    "yarn, ramp over turns": ("yarn", {"ramp": "turns"}),
    "yarn, attention factor": ("yarn", {"attention_factor": 1.3}),
    "yarn, mscale": ("yarn", {"mscale": 0.707, "mscale_all_dim": 1.0}),
    "ntk, alpha": ("ntk", {"alpha": 6.0}),
    "nope": ("proportional", {"proportion": 0.0}),
}
SAVED = {
    **{f"llama-{name}": ("llama", name, OPTIONS.get(name, {})) for name in STATIC},
    **{f"llama-{name}": ("llama", *variant) for name, variant in VARIANTS.items()},
    **{f"{kind}-yarn": (kind, "yarn", {}) for kind in KINDS if kind != "llama"},
}
# A plain interpreter that cannot import ropepatch loads every directory and answers.
PLAIN = """
import sys
sys.modules["ropepatch"] = None
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids, directories, out = torch.load(sys.argv[1])
answers = {}
for name, directory in directories.items():
    try:
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            answers[name] = model(input_ids=ids).logits
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
torch.save(answers, out)
"""


def initialised_model(kind):
    """With transformers' own initialisation, as training starts from, and not the tests' larger weights.

    Plain transformers computes angles in float32. With logits of standard deviation 1 that shows as some
    4e-6 at these positions, here as less than 1e-6.
    """
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind)).eval()


def answers_of_plain_transformers(directories, scratch):
    request, reply = scratch / "request.pt", scratch / "reply.pt"
    torch.save((IDS, {name: str(path) for name, path in directories.items()}, str(reply)), request)
    subprocess.run([sys.executable, "-c", PLAIN, str(request)], check=True, cwd=scratch)
    return torch.load(reply)


@pytest.fixture(scope="module")
def saved_and_reloaded(tmp_path_factory):
    """Logits before saving and after plain loading in another process, for every row of SAVED."""
    scratch = tmp_path_factory.mktemp("plain")
    before, directories = {}, {}
    for name, (kind, method, options) in SAVED.items():
        model = patch_model(initialised_model(kind), method, 4, **options)
        before[name] = logits(model, IDS)
        directories[name] = save_pretrained(model, scratch / name)
    model = patch_model(initialised_model("llama"), "yarn", 4)
    before["saved by transformers"] = logits(model, IDS)
    directories["saved by transformers"] = scratch / "saved by transformers"
    model.save_pretrained(directories["saved by transformers"])
    for method in LENGTH_DEPENDENT:
        model = patch_model(initialised_model("llama"), method, 4, **OPTIONS.get(method, {}))
        directories[method] = save_pretrained(model, scratch / method)
        directories[f"{method} saved by transformers"] = scratch / f"{method} by transformers"
        model.save_pretrained(directories[f"{method} saved by transformers"])
    for kind in KINDS:
        model = patch_model(initialised_model(kind), "dynamic_ntk", 4)
        directories[f"{kind} dynamic_ntk"] = save_pretrained(model, scratch / f"{kind} dynamic")
    return before, answers_of_plain_transformers(directories, scratch)


@pytest.mark.parametrize("name", [*SAVED, "saved by transformers"])
def test_plain_transformers_gives_the_same_logits_for_a_static_method(saved_and_reloaded, name):
    before, after = saved_and_reloaded
    assert isinstance(after[name], torch.Tensor), after[name]
    torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", [*LENGTH_DEPENDENT, *(f"{method} saved by transformers" for method in LENGTH_DEPENDENT)]
)
def test_plain_transformers_refuses_a_length_dependent_method(saved_and_reloaded, name):
    refusal = saved_and_reloaded[1][name]
    assert isinstance(refusal, str)
    assert "load it with ropepatch.load_pretrained" in refusal


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_refuses_a_length_dependent_method_on_every_architecture(
    saved_and_reloaded, kind
):
    assert isinstance(saved_and_reloaded[1][f"{kind} dynamic_ntk"], str)


@pytest.mark.parametrize(
    ("method", "kind"),
    [*(("yarn", kind) for kind in KINDS), *(("dynamic_yarn", kind) for kind in KINDS[::4])],
)
def test_load_pretrained_gives_bit_identical_logits_on_every_architecture(kind, method, tmp_path):
    model = patch_model(fresh_model(kind), method, 4)
    reloaded = load_pretrained(save_pretrained(model, tmp_path / "saved")).eval()
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))
    assert patch_info(reloaded) == patch_info(model)
    assert verify(reloaded) == verify(model)


@pytest.mark.parametrize("method", [*STATIC, *LENGTH_DEPENDENT])
def test_load_pretrained_gives_bit_identical_logits_for_every_method(method, tmp_path):
    model = patch_model(fresh_model("llama"), method, 4, **OPTIONS.get(method, {}))
    reloaded = load_pretrained(save_pretrained(model, tmp_path / "saved")).eval()
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))
    assert patch_info(reloaded) == patch_info(model)


@pytest.mark.parametrize("method", ["yarn", "dynamic_yarn"])
def test_unpatching_a_loaded_checkpoint_gives_the_unpatched_model(method, tmp_path):
    model = fresh_model("llama")
    before, config = logits(model, IDS), model.config.to_diff_dict()
    save_pretrained(patch_model(model, method, 4), tmp_path / "saved")
    reloaded = unpatch_model(load_pretrained(tmp_path / "saved").eval())
    assert torch.equal(logits(reloaded, IDS), before)
    unsaved = {"architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version"}
    again = reloaded.config.to_diff_dict()
    assert {k: v for k, v in again.items() if k not in unsaved} == {
        k: v for k, v in config.items() if k not in unsaved
    }


@pytest.mark.parametrize("build", [llava, gemma3])
@pytest.mark.parametrize("method", ["yarn", "dynamic_yarn"])
def test_a_multimodal_checkpoint_keeps_its_patch_and_class(build, method, tmp_path):
    torch.manual_seed(0)
    model = patch_model(build().eval(), method, 4)
    reloaded = load_pretrained(save_pretrained(model, tmp_path / "saved")).eval()
    assert type(reloaded) is type(model)
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))
    assert patch_info(reloaded) == patch_info(model)


def test_saving_twice_through_a_reload_gives_the_same_files(tmp_path):
    first = save_pretrained(patch_model(fresh_model("llama"), "dynamic_ntk", 4), tmp_path / "one")
    second = save_pretrained(load_pretrained(first), tmp_path / "two")
    configs = [json.loads((path / "config.json").read_text()) for path in (first, second)]
    assert configs[0] == configs[1]
    weights = [load_file(path / "model.safetensors") for path in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_load_pretrained_hands_keywords_on(tmp_path):
    save_pretrained(patch_model(fresh_model("llama"), "yarn", 4), tmp_path / "saved")
    model = load_pretrained(tmp_path / "saved", dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert verify(model).frequency_error == 0


def test_a_replaced_scaling_is_saved_and_loaded(tmp_path):
    config = tiny_config("llama", max_position_embeddings=64)
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    before = logits(model, IDS)
    patch_model(model, "yarn", 4, replace=True, original_max_position_embeddings=32)
    reloaded = load_pretrained(save_pretrained(model, tmp_path / "saved")).eval()
    assert torch.equal(logits(reloaded, IDS), logits(model, IDS))
    torch.testing.assert_close(logits(unpatch_model(reloaded), IDS), before, atol=0, rtol=0)


@pytest.mark.parametrize("method", ["yarn", "dynamic_ntk"])
def test_lengths_follow_in_config_tokenizer_and_generation_config(method, tmp_path):
    model, tokenizer = fresh_model("llama"), tiny_tokenizer()
    model.generation_config.max_length = 32
    patch_model(model, method, 4)
    save_pretrained(model, tmp_path / "saved", tokenizer)
    read = {
        name: json.loads((tmp_path / "saved" / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    }
    assert read["config.json"]["max_position_embeddings"] == 128
    assert read["generation_config.json"]["max_length"] == 128
    assert read["tokenizer_config.json"]["model_max_length"] == 128
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == 128
    assert tokenizer.model_max_length == 32


EDITS = {
    "rope_parameters": lambda content: content["rope_parameters"].update(factor=8.0),
    "max_position_embeddings": lambda content: content.update(max_position_embeddings=256),
    "manifest": lambda content: content["ropepatch"]["options"].update(factor=8.0),
    "digest": lambda content: content["ropepatch"].update(digest="0" * 16),
    "version": lambda content: content["ropepatch"].update(version=99),
    "no digest": lambda content: content["ropepatch"].pop("digest"),
    "emptied": lambda content: content.update(ropepatch={}),
    "other type": lambda content: content.update(ropepatch=[1]),
    "taken out": lambda content: content.pop("ropepatch"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_config_that_was_edited_by_hand_is_refused(edit, tmp_path):
    save_pretrained(patch_model(fresh_model("llama"), "yarn", 4), tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    content = json.loads(path.read_text())
    EDITS[edit](content)
    path.write_text(json.dumps(content))
    with pytest.raises(SidecarError, match=r"config\.json"):
        load_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01"])
def test_a_damaged_config_is_refused_in_clear_words(text, tmp_path):
    save_pretrained(patch_model(fresh_model("llama"), "yarn", 4), tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_pretrained(tmp_path / "saved")


def test_missing_weights_are_named(tmp_path):
    save_pretrained(patch_model(fresh_model("llama"), "yarn", 4), tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_pretrained(tmp_path / "saved")


def test_damaged_weights_are_named(tmp_path):
    save_pretrained(patch_model(fresh_model("llama"), "yarn", 4), tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="saved"):
        load_pretrained(tmp_path / "saved")


def test_a_directory_that_holds_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a config\.json nor"):
        load_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither a config\.json nor"):
        load_pretrained(tmp_path / "missing")


def test_an_unpatched_checkpoint_is_refused_with_advice(tmp_path):
    save_pretrained(fresh_model("llama"), tmp_path / "saved")
    with pytest.raises(SidecarError, match="names no ropepatch patch"):
        load_pretrained(tmp_path / "saved")
