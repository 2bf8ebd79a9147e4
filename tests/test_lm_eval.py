"""lm-evaluation-harness on patched models: stock transformers and ropepatch agree, nothing is cut."""

import argparse
import importlib.util
import json
import sys

import pytest
import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ropepatch import lm_eval_command, patch_model, save_pretrained
from ropepatch.errors import ConfigError, DataError
from ropepatch.evaluation_arguments import add_lm_eval

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed; pip install 'ropepatch[lm-eval]'",
)

CONTEXT = [f"w{3 + 7 * place % 90}" for place in range(100)]
CHOICES = ["w5", "w41", "w77"]

TASK = """
task: choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


def tokenizer():
    """Token n is the word "wn"; the first three are special, as in the tiny models' configs."""
    names = ["<pad>", "<bos>", "<eos>", *(f"w{index}" for index in range(3, 96))]
    words = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint that was trained to 32 tokens."""
    directory = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def task(tmp_path):
    """Arguments for one question of 100 tokens with three answers, to be written into tmp_path."""
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": " ".join(CONTEXT), "choices": CHOICES, "answer": 0}))
    (tmp_path / "choose.yaml").write_text(TASK.format(data=data))
    reads = ["--tasks", "choose", "--include_path", str(tmp_path), "--device", "cpu"]
    return [*reads, "--output_path", str(tmp_path / "out"), "--log_samples"]


def run_harness(*arguments):
    parser = argparse.ArgumentParser()
    add_lm_eval(parser)
    lm_eval_command.run(parser.parse_args([str(argument) for argument in arguments]))


def written_likelihoods(directory):
    (samples,) = directory.rglob("samples_choose_*.jsonl")
    return [float(answer[0][0]) for answer in json.loads(samples.read_text())["resps"]]


def patched_model(method="yarn", **options):
    return patch_model(tiny_model("llama"), method, factor=4, **options)


@torch.no_grad()
def likelihoods(model):
    """Log likelihoods of the choices, from the model's own logits."""
    ids = torch.tensor([[int(word[1:]) for word in CONTEXT]])
    scores = model(ids).logits[0, -1].double().log_softmax(-1)
    return [float(scores[int(choice[1:])]) for choice in CHOICES]


def request(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def harness_model(*arguments, **settings):
    from ropepatch.lm_eval_model import PatchedLM

    return PatchedLM(*map(str, arguments), device="cpu", **settings)


def choices():
    return [request("loglikelihood", " ".join(CONTEXT), f" {choice}") for choice in CHOICES]


@needs_harness
def test_saved_patched_checkpoint_works_with_the_harness_as_it_is(tmp_path, task, monkeypatch):
    from lm_eval.__main__ import cli_evaluate

    model = patched_model()
    save_pretrained(model, tmp_path / "model", tokenizer())
    arguments = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'}", *task]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *arguments])
    cli_evaluate()
    assert written_likelihoods(tmp_path) == pytest.approx(likelihoods(model), abs=1e-4)


@needs_harness
def test_command_patches_after_loading_and_passes_the_rest_on(base, tmp_path, task):
    run_harness("--method", "yarn", "--factor", 4, "--set", "attention_factor=2.0", base, *task)
    expected = likelihoods(patched_model(attention_factor=2.0))
    assert written_likelihoods(tmp_path) == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(likelihoods(patched_model()), abs=1e-3)


@needs_harness
def test_length_dependent_methods_get_their_full_length(base):
    # Plain transformers' config keeps 32 tokens for them.
    model = harness_model(base, method="dynamic_ntk", factor=4)
    assert model.max_length == 128
    found = [value for value, _ in model.loglikelihood(choices())]
    assert found == pytest.approx(likelihoods(patched_model("dynamic_ntk")), abs=1e-4)


@needs_harness
def test_a_checkpoint_that_only_ropepatch_can_load_is_run(tmp_path):
    from tiny_bias_models import bias_model

    model = patch_model(
        bias_model("bloom"), "linear", factor=4, original_max_position_embeddings=32
    )
    save_pretrained(model, tmp_path, tokenizer())
    found = [value for value, _ in harness_model(tmp_path).loglikelihood(choices())]
    assert found == pytest.approx(likelihoods(model), abs=1e-4)


@needs_harness
def test_a_question_that_is_too_long_stops_the_harness(base):
    # 100 tokens and an answer of one, of which the last is not read.
    with pytest.raises(DataError, match="request of 100 tokens does not fit into 32 of the model"):
        harness_model(base).loglikelihood(choices())
    harness_model(base, max_length=100).loglikelihood(choices())
    with pytest.raises(DataError, match="request of 100 tokens does not fit into 99 of the model"):
        harness_model(base, max_length=99).loglikelihood(choices())


@needs_harness
def test_room_for_the_answer_is_kept_where_it_is_generated(base):
    asked = request("generate_until", " ".join(CONTEXT), {"until": ["<eos>"], "max_gen_toks": 8})
    harness_model(base, max_length=108).generate_until([asked])
    with pytest.raises(DataError, match="request of 100 tokens does not fit into 99 of the model"):
        harness_model(base, max_length=107).generate_until([asked])


@needs_harness
def test_a_misspelt_dtype_is_refused(base):
    assert harness_model(base, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype='bfloat61' is none of torch's; use auto"):
        harness_model(base, dtype="bfloat61")


def test_a_factor_without_a_method_is_refused(base):
    pytest.importorskip("lm_eval")
    with pytest.raises(ConfigError, match="factor without a method; add --method"):
        run_harness("--factor", 4, base)
