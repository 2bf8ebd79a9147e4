"""The evaluation that ends a run: which models are measured, on which text, at which lengths."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import (
    LENGTH,
    extension_tree,
    pretraining_tree,
    seq2seq_tree,
    with_evaluation,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropepatch import load_pretrained, patch_model, precision, save_pretrained, unpatch_model
from ropepatch.corpus import load_documents
from ropepatch.errors import CheckpointError, ConfigError, OutOfMemoryError
from ropepatch.evals import charts, measure, plan_evaluation
from ropepatch.training import before_after
from ropepatch.training.before_after import evaluation_lengths
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import TrainingInterrupted, train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    return train(parse_recipe(with_evaluation(pretraining_tree(root), root)))


@pytest.fixture(scope="module")
def extended(tmp_path_factory, base):
    """An adapter, measured at a factor of its own and at another."""
    root = tmp_path_factory.mktemp("extended")
    tree = with_evaluation(extension_tree(root, base.directory), root, factors=[8.0])
    return train(parse_recipe(tree))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Reports without the lines of their charts, which take longest; `base` and `extended` have theirs."""
    monkeypatch.setattr(charts, "as_svg", lambda figure: "<svg></svg>")


def report(result):
    return json.loads((result.directory.parent / "evaluation" / "report.json").read_text())


def losses(stage):
    return [stage.target_losses[length] for length in stage.lengths]


def measured_by_hand(model, stage, tree_root):
    """The same windows through `measure`, for a model that the test has put together."""
    plan = plan_evaluation(
        AutoTokenizer.from_pretrained(tree_root / "final"),
        load_documents(str(tree_root.parent / "held_out.txt"), "held_out"),
        lengths=stage.lengths,
        trained_length=LENGTH,
        targets=LENGTH // 2,
        windows=3,
        prompts=2,
    )
    return measure(model, plan, "by hand")


def test_a_pretrained_model_is_measured_after_only(base):
    assert [stage.label for stage in base.stages] == ["trained"]
    assert base.stages[0].lengths == (LENGTH, 2 * LENGTH)


def test_an_extension_is_measured_before_and_after_and_at_other_factors(extended):
    assert [stage.label for stage in extended.stages] == [
        "unpatched",
        "yarn ×4",
        "yarn ×8, trained at ×4",
        "yarn ×4, trained",
    ]
    assert extended.stages[0].lengths == (32, 64, 128, 256)
    assert [stage["label"] for stage in report(extended)["stages"]] == [
        stage.label for stage in extended.stages
    ]


def test_every_stage_is_the_model_that_its_label_says(base, extended):
    unpatched, patched, other, trained = extended.stages
    model = AutoModelForCausalLM.from_pretrained(base.directory)
    directory = extended.directory.parent

    def same(stage, model):
        expected = measured_by_hand(model, stage, directory)
        for length in stage.lengths:
            np.testing.assert_allclose(
                stage.target_losses[length], expected.target_losses[length], atol=1e-5
            )

    same(unpatched, model)
    same(patched, patch_model(model, "yarn", 4))
    tuned = load_pretrained(extended.directory).merge_and_unload()
    same(trained, tuned)
    same(other, patch_model(tuned, "yarn", 8, replace=True))


@pytest.mark.parametrize("adapter", [True, False])
def test_a_base_with_a_patch_of_its_own_is_measured_with_that_before(tmp_path, base, adapter):
    model = patch_model(AutoModelForCausalLM.from_pretrained(base.directory), "yarn", 2)
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    save_pretrained(model, tmp_path / "patched", tokenizer)
    tree = extension_tree(tmp_path, tmp_path / "patched", merge=not adapter)
    tree["patch"]["replace"] = True
    tree["training"]["max_steps"] = 1
    extended = train(parse_recipe(with_evaluation(tree, tmp_path)))
    before, untrained, trained = extended.stages
    assert (before.label, untrained.label) == ("base, yarn ×2", "yarn ×4")

    expected = losses(measured_by_hand(model, before, extended.directory.parent))
    np.testing.assert_allclose(losses(before), expected, atol=1e-5)
    patch_model(model, "yarn", 4, replace=True)
    expected = losses(measured_by_hand(model, before, extended.directory.parent))
    np.testing.assert_allclose(losses(untrained), expected, atol=1e-5)
    final = load_pretrained(extended.directory, base_model=unpatch_model(model))
    final = final.merge_and_unload() if adapter else final
    expected = losses(measured_by_hand(final, before, extended.directory.parent))
    np.testing.assert_allclose(losses(trained), expected, atol=1e-5)


def test_training_lowers_the_loss_of_held_out_text(extended):
    _, patched, _, trained = extended.stages
    # Held-out text has the words of what is trained on, in another order.
    assert trained.target_loss(128).value < patched.target_loss(128).value


def test_a_model_saved_in_another_dtype_is_measured_as_it_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "relative_time", lambda dtype: 1.0)  # where that is not slow
    tree = with_evaluation(pretraining_tree(tmp_path, max_steps=1), tmp_path)
    tree["model"]["save_dtype"] = "bfloat16"
    result = train(parse_recipe(tree))
    assert result.stages[0].configuration["dtype"] == "bfloat16"


def test_an_encoder_decoder_model_is_measured_by_what_its_decoder_predicts(tmp_path):
    tree = seq2seq_tree(tmp_path, max_steps=1)
    stage = train(parse_recipe(with_evaluation(tree, tmp_path))).stages[0]
    assert stage.configuration["targets"] == tree["data"]["target_length"]
    assert stage.configuration["not_asked"] == {}
    assert np.isfinite(losses(stage)[0]).all()


def test_retrieval_is_not_asked_of_a_tokenizer_without_reserved_tokens(tmp_path):
    tree = with_evaluation(pretraining_tree(tmp_path, max_steps=1), tmp_path)
    tree["model"]["tokenizer"] = {"vocab_size": 300, "keys": 0, "values": 0}
    tree["data"]["mixture"] = {"retrieval": 0.0}
    result = train(parse_recipe(tree))
    answer = next(claim for claim in report(result)["claims"] if "found again" in claim["question"])
    assert answer["verdict"] == "not measured"
    assert "reserves 0 keys" in answer["detail"]


def test_text_that_cannot_fill_the_windows_is_found_before_training(tmp_path):
    tree = with_evaluation(pretraining_tree(tmp_path), tmp_path, lengths=[32, 100_000])
    with pytest.raises(ConfigError, match=r"evaluation: no document .* evaluation\.lengths"):
        train(parse_recipe(tree))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_finished_run_can_be_measured_in_another_way_without_training(tmp_path):
    tree = pretraining_tree(tmp_path, max_steps=1)
    first = train(parse_recipe(tree))
    assert first.stages == ()
    again = train(parse_recipe(with_evaluation(tree, tmp_path, windows=2)))
    assert again.loss is None
    assert [len(stage.documents) for stage in again.stages] == [2]
    assert train(parse_recipe(with_evaluation(tree, tmp_path, windows=2))).stages == ()
    last = train(parse_recipe(with_evaluation(tree, tmp_path, windows=4)))
    assert [len(stage.documents) for stage in last.stages] == [4]
    assert report(last)["stages"][0]["configuration"]["windows"] == 4


def test_an_interrupted_evaluation_says_that_the_model_is_kept(tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    recipe = parse_recipe(with_evaluation(pretraining_tree(tmp_path, max_steps=1), tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(before_after, "measure", stop)
        with pytest.raises(TrainingInterrupted, match=r"the trained model is kept: .*final"):
            train(recipe)
    assert len(train(recipe).stages) == 1


def test_an_evaluation_out_of_memory_says_so_and_keeps_the_model(tmp_path, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(before_after, "measure", fail)
    recipe = parse_recipe(with_evaluation(pretraining_tree(tmp_path, max_steps=1), tmp_path))
    with pytest.raises(OutOfMemoryError, match=r"model is kept: .*final; .*evaluation\.lengths"):
        train(recipe)


def test_a_report_that_cannot_be_written_keeps_the_model(tmp_path, monkeypatch):
    recipe = parse_recipe(with_evaluation(pretraining_tree(tmp_path, max_steps=1), tmp_path))
    with monkeypatch.context() as patch:

        def full(*arguments, **options):
            raise OSError(28, "No space left on device")

        patch.setattr("ropepatch.evals.report.write_whole", full)
        with pytest.raises(CheckpointError, match=r"No space left.*model is kept: .*final"):
            train(recipe)
    assert not (tmp_path / "run" / "evaluation").exists()
    assert train(recipe).loss is None
    assert (tmp_path / "run" / "evaluation" / "report.html").exists()


def test_progress_names_every_stage_and_comes_to_its_end(tmp_path):
    told = []
    recipe = parse_recipe(with_evaluation(pretraining_tree(tmp_path, max_steps=1), tmp_path))
    train(recipe, measured=lambda label, share: told.append((label, share)))
    assert {label for label, _ in told} == {"trained"}
    assert told[-1][1] == 1.0
    assert [share for _, share in told] == sorted(share for _, share in told)


@pytest.mark.parametrize(
    ("factor", "factors", "given", "expected"),
    [
        (4, [], None, [32, 64, 128]),
        (3, [], None, [32, 64, 96]),
        (1, [], None, [32, 64]),  # a patch for speed: whether it extrapolates
        (2, [8], None, [32, 64, 128, 256]),
        (4, [], [128, 32, 32], [32, 128]),
    ],
)
def test_lengths_double_from_the_trained_one_to_the_target(
    tmp_path, base, factor, factors, given, expected
):
    tree = extension_tree(tmp_path, base.directory)
    patch = {"method": "yarn", "factor": factor}
    settings = {"factors": factors, "lengths": given, "source": "stdlib"}
    recipe = parse_recipe({**tree, "patch": patch, "evaluation": settings})
    model = AutoModelForCausalLM.from_pretrained(base.directory)
    patch_model(model, "yarn", factor)
    assert evaluation_lengths(recipe, model) == (LENGTH, expected)


@pytest.mark.parametrize(("length", "expected"), [(128, (32, [32, 64, 128])), (16, (16, [16, 32]))])
def test_without_a_patch_lengths_follow_what_is_trained_on(tmp_path, base, length, expected):
    tree = extension_tree(tmp_path, base.directory)
    recipe = parse_recipe({**tree, "patch": None})
    recipe = replace(recipe, data=replace(recipe.data, length=length))
    model = AutoModelForCausalLM.from_pretrained(base.directory)
    assert evaluation_lengths(recipe, model) == expected


def test_a_patch_that_is_fitted_starts_so_in_training_and_is_measured_so(tmp_path, base):
    tree = extension_tree(tmp_path, base.directory)
    tree["patch"] = {"method": "kerple_log", "factor": 4, "fit": "profile"}
    tree["training"] |= {"max_steps": 1, "learning_rate": 1e-12}
    del tree["lora"]
    result = train(parse_recipe(with_evaluation(tree, tmp_path)))
    _, untrained, trained = result.stages
    np.testing.assert_allclose(losses(untrained), losses(trained), atol=1e-4)

    corpus = load_documents(tree["data"]["source"], "train")
    tokens = AutoTokenizer.from_pretrained(base.directory)(
        corpus[0].text, add_special_tokens=False, return_tensors="pt"
    )["input_ids"]
    middle = (tokens.shape[1] - LENGTH) // 2
    model = AutoModelForCausalLM.from_pretrained(base.directory)
    text = tokens[:, middle : middle + LENGTH]
    patch_model(model, "kerple_log", 4, fit="profile", text=text)
    expected = measured_by_hand(model, untrained, result.directory.parent)
    np.testing.assert_allclose(losses(untrained), losses(expected), atol=1e-5)
    patch_model(model, "kerple_log", 4, replace=True)
    plain = measured_by_hand(model, untrained, result.directory.parent)
    assert np.abs(losses(plain)[0] - losses(untrained)[0]).max() > 1e-3
