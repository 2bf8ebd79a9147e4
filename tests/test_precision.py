"""Precision: bf16 only where it is fast, kept by a run that goes on, and never silently slow."""

import json
import warnings

import pytest
import torch
import yaml
from run_files import StopAt
from tiny_models import fresh_model, logits, token_ids
from tiny_runs import pretraining, pretraining_tree

from ropepatch import patch_model, precision, verify
from ropepatch.adapters.pretrained import fast_weights, in_fast_dtype
from ropepatch.errors import ConfigError, RopepatchWarning
from ropepatch.evals.ledger import dtype_in_words
from ropepatch.precision import choose_precision, relative_time
from ropepatch.training import runner
from ropepatch.training.plan import plan_text
from ropepatch.training.recipe import load_recipe, parse_recipe, recipe_tree
from ropepatch.training.run_precision import run_precision
from ropepatch.training.runner import TrainingInterrupted, train

CPU = torch.device("cpu")
IDS = token_ids(2, 40)


@pytest.fixture
def machine(monkeypatch):
    """Function that sets the time of 16-bit products relative to float32."""

    def set_ratio(ratio):
        monkeypatch.setattr(precision, "relative_time", lambda dtype: ratio)

    return set_ratio


@pytest.mark.parametrize(("ratio", "chosen"), [(0.4, "bf16"), (1.0, "bf16"), (1.1, "fp32")])
def test_auto_takes_bf16_where_it_is_at_least_as_fast(machine, ratio, chosen):
    machine(ratio)
    choice = choose_precision("auto", CPU)
    assert choice.precision == chosen
    assert f"{ratio:.1f} times as long as float32" in choice.reason


@pytest.mark.parametrize(("ratio", "warned"), [(2.9, False), (3.1, True)])
def test_a_choice_that_is_slow_is_obeyed_with_one_warning(machine, ratio, warned):
    machine(ratio)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert choose_precision("bf16", CPU).precision == "bf16"
    assert len(caught) == warned
    assert all(w.category is RopepatchWarning and "3 times" in str(w.message) for w in caught)


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision("fp16", CPU)


def test_the_probe_leaves_the_number_of_threads():
    threads = torch.get_num_threads()
    relative_time.cache_clear()
    torch.set_num_threads(2)
    try:
        assert relative_time(torch.bfloat16) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("old", "new"), [(True, "auto"), (False, "fp32")])
def test_recipes_may_still_say_bf16(tmp_path, old, new):
    tree = pretraining_tree(tmp_path)
    del tree["training"]["precision"]
    recipe = parse_recipe({**tree, "training": {**tree["training"], "bf16": old}})
    assert recipe.training.precision == new
    assert parse_recipe(recipe_tree(recipe)) == recipe


@pytest.mark.parametrize(
    ("said", "override", "precision"),
    [
        ("precision: fp32", "training.bf16=true", "auto"),
        ("precision: auto", "training.bf16=false", "fp32"),
        ("bf16: true", "training.precision=fp32", "fp32"),
    ],
)
def test_an_override_may_use_another_name_than_the_recipe(tmp_path, said, override, precision):
    tree = pretraining_tree(tmp_path)
    del tree["training"]["precision"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"extends: base.yaml\ntraining:\n  {said}\n")
    assert load_recipe(path, (override,)).training.precision == precision
    (tmp_path / "above.yaml").write_text(
        f"extends: recipe.yaml\ntraining: {{{override.removeprefix('training.').replace('=', ': ')}}}"
    )
    assert load_recipe(tmp_path / "above.yaml").training.precision == precision


def test_precision_and_its_old_name_together_are_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="either precision or bf16"):
        pretraining(tmp_path, bf16=True)


@pytest.mark.parametrize(("first", "then"), [(0.5, 30.0), (30.0, 0.5)])
def test_a_run_keeps_its_precision_on_another_machine_and_says_so(tmp_path, machine, first, then):
    recipe = pretraining(tmp_path, precision="auto", max_steps=4)
    said = []
    machine(first)
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(3, KeyboardInterrupt())], announce=said.append)
    machine(then)
    train(recipe, announce=said.append)
    began = "bf16" if first < 1 else "fp32"
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"]
    assert [session["precision"] for session in sessions] == [began, began]
    assert said[0].startswith(f"precision: {began}: bfloat16 takes")
    assert said[1].startswith(f"precision: {began}: as the run began; a new one would take")


def test_autocast_runs_in_the_precision_that_was_chosen(tmp_path, machine):
    machine(0.5)
    dtypes = set()

    class Seen(StopAt):
        def on_step_begin(self, args, state, control, model, **kwargs):
            hook = model.lm_head.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
            self.hook = hook

    recipe = pretraining(tmp_path, precision="auto", gradient_accumulation=1)
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[Seen(1, KeyboardInterrupt())])
    assert dtypes == {torch.bfloat16}


def test_a_run_of_an_earlier_version_keeps_the_bf16_of_its_recipe(tmp_path, machine, monkeypatch):
    recipe = pretraining(tmp_path, precision="auto", max_steps=4)
    machine(0.5)
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(3, KeyboardInterrupt())])
    run = tmp_path / "run"
    record = json.loads((run / "environment.json").read_text())
    for key in ("precision", "precision_reason"):
        del record["sessions"][0][key]
    (run / "environment.json").write_text(json.dumps(record))
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("  precision: auto\n", "  bf16: true\n"))
    machine(2.0)
    with (
        monkeypatch.context() as change
    ):  # a start that ends early leaves the recipe of this version
        change.setattr(runner, "load_model", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe)
    train(recipe)
    record = json.loads((run / "environment.json").read_text())
    assert record["sessions"][1]["precision"] == "bf16"


def test_a_run_that_began_in_fp16_does_not_go_on_on_a_cpu(tmp_path):
    recipe = pretraining(tmp_path, precision="auto")
    with pytest.raises(ConfigError, match="the run began in fp16, which needs a GPU"):
        run_precision(recipe, "fp16")


def test_another_precision_is_another_run(tmp_path, machine):
    machine(0.5)
    recipe = pretraining(tmp_path, precision="auto")
    with pytest.raises(TrainingInterrupted):
        train(recipe, callbacks=[StopAt(3, KeyboardInterrupt())])
    with pytest.raises(ConfigError, match=r"training\.precision: bf16 → fp32"):
        train(pretraining(tmp_path, precision="fp32"))


def test_a_dry_run_says_the_precision_and_why(tmp_path, machine):
    machine(30.0)
    text = plan_text(pretraining(tmp_path, precision="auto"))
    row = next(line for line in text.splitlines() if line.startswith("# precision "))
    assert row.endswith("  fp32: bfloat16 takes 30 times as long as float32 on this CPU")


def test_weights_that_the_recipe_wants_in_a_slow_dtype_are_warned_of(tmp_path, machine):
    machine(30.0)
    tree = pretraining_tree(tmp_path, precision="auto")
    tree["model"]["dtype"] = "bfloat16"
    with pytest.warns(RopepatchWarning, match="model.dtype: bfloat16 takes 30 times"):
        plan_text(parse_recipe(tree))


@pytest.mark.parametrize(("ratio", "dtype"), [(0.5, torch.bfloat16), (2.0, torch.float32)])
def test_evaluations_compute_in_float32_where_the_checkpoint_s_dtype_is_slow(machine, ratio, dtype):
    machine(ratio)
    model = in_fast_dtype(fresh_model("llama").to(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_ledger_says_why_the_dtype_is_not_the_checkpoint_s(machine):
    machine(30.0)
    model = fresh_model("llama").to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    assert dtype_in_words(model) == "bfloat16"
    said = dtype_in_words(in_fast_dtype(model))
    assert said.startswith("float32, as the checkpoint is stored in a dtype that is slow here")
    assert "bfloat16 takes 30 times as long" in said


def test_verifying_computes_in_float32_and_leaves_every_tensor_as_it_was(machine):
    machine(30.0)
    model = patch_model(fresh_model("llama").to(torch.bfloat16), "yarn", 4)
    before = {name: (id(it), it.data_ptr(), it.clone()) for name, it in model.named_parameters()}
    dtypes = set()
    model.lm_head.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    verify(model)
    assert dtypes == {torch.float32}
    for name, parameter in model.named_parameters():
        identity, place, values = before[name]
        assert (id(parameter), parameter.data_ptr()) == (identity, place)
        assert torch.equal(parameter, values)


def test_float32_copies_are_gone_after_an_error(machine):
    machine(30.0)
    model = fresh_model("llama").to(torch.bfloat16)

    def stop():
        with fast_weights(model):
            assert logits(model, IDS).dtype == torch.float32
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert logits(model, IDS).dtype == torch.bfloat16
