"""An evaluation with a store, and one whose process is killed at a batch."""

import os
import signal

import numpy as np
from tiny_models import tiny_model

from ropepatch.corpus import Document, train_tokenizer
from ropepatch.evals import answers, losses, measure, plan_evaluation, runner
from ropepatch.evals.samples import SampleStore

_WORDS = ["def", "return", "self", "value", "import", "length", "for", "in", "if", "else"]
DOCUMENTS = [
    Document(f"doc{n}", " ".join(np.random.default_rng(n).choice(_WORDS, size=250)))
    for n in range(4)
]


class Batches:
    """Counts the batches that reach the model."""

    def __init__(self, last=None):
        self.count, self.last = 0, last

    def counted(self, function):
        def wrapped(*positional, **keywords):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*positional, **keywords)

        return wrapped


def run(directory, batches, replace=setattr):
    """Measure with small batches; `replace` is setattr, or monkeypatch's."""
    for module in (losses, answers):
        replace(module, "TOKENS_PER_BATCH", 256)
    replace(losses, "token_losses", batches.counted(losses.token_losses))
    replace(runner, "answer_prompts", batches.counted(runner.answer_prompts))
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=420, keys=10, values=10)
    plan = plan_evaluation(
        tokenizer,
        DOCUMENTS,
        lengths=(32, 64, 128),
        trained_length=32,
        targets=16,
        windows=6,
        prompts=8,
    )
    store = SampleStore(directory, {"protocol": plan.digest(), "models": {"model": "same"}})
    return measure(
        tiny_model("llama", vocab_size=420), plan, "model", samples=store.candidate("model")
    )


def exit_code_of_killed(directory, number):
    """Exit code of a process that measures, and kills itself at a batch."""
    child = os.fork()  # a process of its own would import torch for seconds
    if child == 0:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
        try:
            run(directory, Batches(number))
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
