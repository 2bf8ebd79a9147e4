"""Whole runs: what is trained, how, and what is saved."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from run_files import losses, weights
from tiny_runs import (
    CONFIG,
    LENGTH,
    T5_CONFIG,
    extension,
    extension_tree,
    pretraining,
    pretraining_tree,
    seq2seq_tree,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from ropepatch import load_pretrained, patch_info, verify
from ropepatch.errors import (
    ConfigError,
)
from ropepatch.training import progress
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.run_directory import RunDirectory
from ropepatch.training.runner import prepare, train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished pretraining."""
    return train(pretraining(tmp_path_factory.mktemp("base"))).directory


def test_a_pretrained_model_is_a_plain_checkpoint(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.config.hidden_size == CONFIG["hidden_size"]
    assert model.config.vocab_size == len(tokenizer) == 450
    assert tokenizer.model_max_length == LENGTH
    assert not (base / "training_args.bin").exists()


def test_training_lowers_the_loss(tmp_path):
    recipe = pretraining(tmp_path, max_steps=30)
    train(recipe)
    steps = losses(recipe)
    assert [step for step, _ in steps] == list(range(1, 31))
    assert steps[-1][1] < steps[0][1] - 0.5


def test_the_saved_dtype_is_the_one_asked_for(tmp_path):
    tree = pretraining_tree(tmp_path, max_steps=1)
    tree["model"]["save_dtype"] = "bfloat16"
    result = train(parse_recipe(tree))
    assert {weight.dtype for weight in weights(result.directory).values()} == {torch.bfloat16}


def test_the_resolved_recipe_is_kept_with_the_run(tmp_path):
    recipe = pretraining(tmp_path, max_steps=1)
    train(recipe)
    assert parse_recipe(yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())) == recipe


def test_only_the_asked_number_of_checkpoints_is_kept(tmp_path):
    train(pretraining(tmp_path, save_steps=1, keep_checkpoints=2))
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {
        "checkpoint-5",
        "checkpoint-6",
    }


def test_progress_is_told_every_step_and_the_time_left(tmp_path, monkeypatch):
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    seen = []
    train(pretraining(tmp_path, max_steps=3), progress=seen.append)
    assert [(each.step, each.max_steps) for each in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[0].seconds_left is None
    assert seen[1].seconds_left == 0.5
    assert seen[2].seconds_left == 0


def test_a_step_is_the_same_in_one_batch_and_in_accumulated_ones(tmp_path):
    # Means over micro-batches of unequal numbers of scored tokens would differ.
    results = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        tree = pretraining_tree(tmp_path, max_steps=1)
        tree["model"]["config"]["attention_dropout"] = 0.0
        tree["training"] |= {
            "per_device_batch_size": batch,
            "gradient_accumulation": accumulation,
        }
        tree["data"]["mixture"] = {"retrieval": 0.5}
        tree["output_dir"] = str(tmp_path / f"run-{batch}")
        recipe = parse_recipe(tree)
        train(recipe)
        results.append(losses(recipe)[0][1])
    assert results == pytest.approx([results[0]] * 3, rel=1e-5)


def test_a_recipe_patches_a_part_of_a_model_that_does_not_say_its_length(tmp_path):
    tree = seq2seq_tree(tmp_path, max_steps=1)
    tree["model"]["config"] = {k: v for k, v in T5_CONFIG.items() if k != "n_positions"}
    length = {"original_max_position_embeddings": LENGTH}
    tree["patch"] = {"method": "log", "factor": 2, "part": "encoder", **length}
    info = patch_info(load_pretrained(train(parse_recipe(tree)).directory))
    assert (info.method, info.part, info.original_max_position_embeddings) == (
        "log",
        "encoder",
        LENGTH,
    )


def test_every_checkpoint_of_an_adapter_carries_its_patch(tmp_path, base):
    result = train(extension(tmp_path, base))
    for directory in [result.directory, *(tmp_path / "run").glob("checkpoint-*")]:
        model = load_pretrained(directory)
        info = patch_info(model)
        assert info is not None
        assert (info.method, info.factor) == ("yarn", 4)
        verify(model)


def test_a_fully_trained_patched_model_loads_in_plain_transformers(tmp_path, base):
    recipe = replace(extension(tmp_path, base), lora=None)
    directory = train(recipe).directory
    plain, patched = AutoModelForCausalLM.from_pretrained(directory), load_pretrained(directory)
    ids = torch.arange(100)[None] + 5
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(ids).logits, patched.eval()(ids).logits, atol=1e-4, rtol=0
        )


def test_a_merged_adapter_is_a_whole_checkpoint_of_the_same_model(tmp_path, base):
    adapter = train(extension(tmp_path, base)).directory
    recipe = replace(extension(tmp_path, base, merge=True), output_dir=str(tmp_path / "merged"))
    merged = load_pretrained(train(recipe).directory).eval()
    ids = torch.arange(100)[None] + 5
    with torch.no_grad():
        expected = load_pretrained(adapter).eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=0)
    assert not (tmp_path / "merged" / "final" / "adapter_config.json").exists()
    assert verify(merged)


def test_the_preset_full_trains_all_weights(tmp_path, base):
    tree = extension_tree(tmp_path, base)
    tree["lora"] = {"preset": "full"}
    directory = train(parse_recipe(tree)).directory
    before, after = weights(base), weights(directory)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_an_encoder_decoder_model_learns_to_go_on_from_a_prefix(tmp_path):
    recipe = parse_recipe(seq2seq_tree(tmp_path, max_steps=30))
    directory = train(recipe).directory
    steps = losses(recipe)
    assert steps[-1][1] < steps[0][1] - 0.5
    model = AutoModelForSeq2SeqLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id
    assert model.config.n_positions == tokenizer.model_max_length == LENGTH


def test_a_target_length_is_needed_by_encoder_decoder_models_and_refused_by_others(tmp_path):
    tree = seq2seq_tree(tmp_path)
    del tree["data"]["target_length"]
    with pytest.raises(
        ConfigError, match=r"t5 is an encoder–decoder model; set data\.target_length"
    ):
        train(parse_recipe(tree))
    tree = seq2seq_tree(tmp_path)
    tree["model"]["config"] = CONFIG
    with pytest.raises(ConfigError, match="llama has no encoder"):
        train(parse_recipe(tree))


def test_a_model_without_reserved_tokens_trains_on_plain_text(tmp_path):
    tree = pretraining_tree(tmp_path, max_steps=1)
    tree["model"]["tokenizer"] = {"vocab_size": 300, "keys": 0, "values": 0}
    tree["data"]["mixture"] = {"retrieval": 0.0, "repeats": 0.0}
    assert train(parse_recipe(tree)).steps == 1


def test_the_schedule_follows_the_recipe(tmp_path):
    recipe = pretraining(
        tmp_path,
        max_steps=6,
        warmup_steps=2,
        schedule="warmup_stable_decay",
        decay_steps=2,
        min_lr_ratio=0.1,
    )
    trainer = prepare(RunDirectory(recipe))
    trainer.create_optimizer_and_scheduler(6)
    rates = []
    for _ in range(6):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    # By hand: from 0.1 up to 1 in two steps, stable for two, then 1 − sqrt down towards 0.1.
    shares = [0.1, 0.55, 1.0, 1.0, 1.0, 0.1 + 0.9 * (1 - 0.5**0.5)]
    assert rates == pytest.approx([0.01 * share for share in shares])


def test_embeddings_learn_at_a_rate_of_their_own(tmp_path):
    recipe = pretraining(tmp_path, max_steps=4, embedding_learning_rate=0.03, schedule="linear")
    trainer = prepare(RunDirectory(recipe))
    trainer.create_optimizer_and_scheduler(4)
    embeddings = trainer.trained.get_input_embeddings().weight
    groups = trainer.optimizer.param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in trainer.trained.parameters()}
    assert len(grouped) == len(set(map(id, grouped)))
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    for group in groups:
        # By hand: from the given rate down to nothing in four steps, one of which is done.
        rate = 0.03 if any(parameter is embeddings for parameter in group["params"]) else 0.01
        assert group["lr"] == pytest.approx(rate * 3 / 4)
