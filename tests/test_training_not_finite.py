"""A loss, a gradient or a weight that is not finite ends a run before it is saved."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import pretraining, pretraining_tree
from transformers import Trainer, TrainerCallback

from ropepatch.errors import NonFiniteError
from ropepatch.training.finite_trainer import FiniteTrainer
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train


class BreakAt(TrainerCallback):
    """Calls `damage` with the model at the start of a step's n-th batch, both counted from 1."""

    def __init__(self, step, batch, damage):
        self.step = step
        self.batch = batch
        self.damage = damage
        self.seen = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen = 0
        self.count(state, kwargs["model"])

    def on_substep_end(self, args, state, control, **kwargs):
        self.count(state, kwargs["model"])

    def count(self, state, model):
        self.seen += 1
        if (state.global_step + 1, self.seen) == (self.step, self.batch):
            self.damage(model)


def make_loss(value):
    """Hooks the head so that every loss from now on has that value."""

    def damage(model):
        def hook(module, inputs, output):
            output.loss = output.loss * 0 + value
            return output

        model.register_forward_hook(hook)

    return damage


def spoil_gradient(model):
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * float("inf"))


class SpoilWeights(TrainerCallback):
    """A weight becomes NaN in an optimizer step, though loss and gradient were finite."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(kwargs["model"].parameters()).view(-1)[0] = float("nan")


def refusal(recipe, *callbacks):
    with pytest.raises(NonFiniteError) as caught:
        train(recipe, callbacks=callbacks)
    return str(caught.value)


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step_and_the_sequences(tmp_path, value):
    # Two sequences a batch and two batches a step: the second batch of step 4 is numbers 14 and 15.
    message = refusal(pretraining(tmp_path), BreakAt(4, 2, make_loss(value)))
    assert f"the loss of step 4 is {value} (batch 2 of 2, sequences 14 to 15)" in message
    assert "the last good checkpoint is kept" in message
    assert "lower training.learning_rate" in message
    assert kept(tmp_path) == ["checkpoint-2"]


def test_a_gradient_that_is_not_finite_names_all_sequences_of_its_step(tmp_path):
    message = refusal(pretraining(tmp_path), BreakAt(4, 1, spoil_gradient))
    assert "the gradient norm of step 4 is " in message
    assert "(sequences 12 to 15)" in message


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_is_watched_whether_it_is_clipped_or_not(tmp_path, max_grad_norm):
    recipe = pretraining(tmp_path, max_grad_norm=max_grad_norm)
    assert "gradient norm of step 1" in refusal(recipe, BreakAt(1, 1, spoil_gradient))


def test_weights_that_are_not_finite_are_not_saved_and_cost_no_older_checkpoint(tmp_path):
    recipe = pretraining(tmp_path, save_steps=1, keep_checkpoints=1)
    message = refusal(recipe, SpoilWeights(3))
    assert "model.embed_tokens.weight are not finite after step 3" in message
    assert kept(tmp_path) == ["checkpoint-2"]
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in saved.values())


def test_weights_that_are_not_finite_at_the_end_make_no_result(tmp_path):
    recipe = pretraining(tmp_path, save_steps=100)

    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            with torch.no_grad():
                next(kwargs["model"].parameters()).fill_(float("nan"))

    # Nor a checkpoint: the Trainer writes one at the last step, before this.
    refusal(recipe, AtTheEnd())
    assert not (tmp_path / "run" / "final").exists()


def test_a_diverging_run_stops_by_itself_and_logs_only_finite_losses(tmp_path):
    tree = pretraining_tree(tmp_path, max_steps=50, learning_rate=1e20, save_steps=1)
    message = refusal(parse_recipe(tree))
    assert "step" in message
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert all(abs(loss) < float("inf") for loss in losses)


def test_a_run_that_broke_off_goes_on_from_its_last_good_checkpoint(tmp_path):
    recipe = pretraining(tmp_path)
    refusal(recipe, BreakAt(4, 2, make_loss(float("nan"))))
    undisturbed = train(replace(recipe, output_dir=str(tmp_path / "other")))
    first, second = (
        load_file(path / "model.safetensors")
        for path in (train(recipe).directory, undisturbed.directory)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("scale", "stops"), [(2.0, False), (1.0, False), (0.5, True)])
def test_in_fp16_a_gradient_that_no_scale_makes_finite_stops_the_run(monkeypatch, scale, stops):
    """The scaler halves its scale at every step that overflows, from 65536."""
    trainer = FiniteTrainer.__new__(FiniteTrainer)
    trainer.accelerator = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: scale))
    trainer.args = SimpleNamespace(gradient_accumulation_steps=1)
    trainer.state = SimpleNamespace(global_step=17)
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda *arguments, **options: math.inf)
    monkeypatch.setattr(FiniteTrainer, "_sequences", lambda *arguments: "sequence 0")
    expected = pytest.raises(NonFiniteError, match="step 18 is inf") if stops else nullcontext()
    with expected:
        trainer._get_grad_norm(torch.nn.Linear(1, 1))
