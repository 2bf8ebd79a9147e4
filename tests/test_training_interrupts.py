"""A Ctrl-C that Python drops on its way still ends the run."""

import signal

import pytest
from tiny_runs import pretraining
from transformers import TrainerCallback

from ropepatch.training.runner import TrainingInterrupted, train


class PressesInDestructor:
    """Ctrl-C while an object is destroyed: what is raised there, Python prints and drops."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


class PressAt(TrainerCallback):
    """Ctrl-C in the third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            PressesInDestructor()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_interrupt_ends_the_run_at_its_next_step(tmp_path):
    recipe = pretraining(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="checkpoint-2"):
        train(recipe, callbacks=[PressAt()])
    assert signal.getsignal(signal.SIGINT) is before
