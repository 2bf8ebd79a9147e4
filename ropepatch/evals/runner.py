"""One evaluation: which passes are run, and what is read off each."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropepatch.corpus import Document
from ropepatch.errors import DataError
from ropepatch.evals.evaluation import Evaluation, Json
from ropepatch.evals.ledger import active_patch, model_settings, protocol_settings
from ropepatch.evals.losses import (
    TOKENS_PER_BATCH,
    Tick,
    batched_losses,
    bin_edges,
    one_pass_is_exact,
    plain_head,
    position_losses,
    run_ends,
)
from ropepatch.evals.plan import Plan, plan_evaluation
from ropepatch.evals.retrieval import choose
from ropepatch.evals.samples import Answer, Samples
from ropepatch.evals.tasks.prompt import Prompt, digest
from ropepatch.evals.tasks.scores import TaskScores
from ropepatch.evals.windows import Windows
from ropepatch.verification import evaluation_mode

#: Tokens at which attention costs as much as the rest of a small model; only progress uses it.
_QUADRATIC_FROM = 2048


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: list[Document],
    *,
    lengths: Sequence[int],
    trained_length: int,
    label: str,
    targets: int = 64,
    windows: int = 50,
    prompts: int = 64,
    pairs: int = 8,
    bos: bool = False,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Losses and retrieval of one model; `progress` is told the share of the work that is done.

    Raises DataError for documents that hold no window, or a tokenizer that is not the model's.
    """
    plan = plan_evaluation(
        tokenizer,
        documents,
        lengths=lengths,
        trained_length=trained_length,
        targets=targets,
        windows=windows,
        prompts=prompts,
        pairs=pairs,
        bos=bos,
        seed=seed,
        is_encoder_decoder=model.config.is_encoder_decoder,
    )
    return measure(model, plan, label, progress)


def measure(
    model: PreTrainedModel,
    plan: Plan,
    label: str,
    progress: Callable[[float], None] | None = None,
    samples: Samples | None = None,
) -> Evaluation:
    """Losses and answers of one model by a plan; what `samples` has is not measured again.

    Raises DataError for tokens that the model does not know.
    """
    _check_vocabulary(model, plan.windows)
    with evaluation_mode(model):
        return _measure(
            model, plan, label, progress or (lambda share: None), samples or Samples(label)
        )


def _measure(
    model: PreTrainedModel,
    plan: Plan,
    label: str,
    progress: Callable[[float], None],
    samples: Samples,
) -> Evaluation:
    protocol, windows = plan.protocol, plan.windows
    started = time.perf_counter()
    head = plain_head(model)
    patch, length_dependent = active_patch(model)
    longest, edges = protocol.lengths[-1], bin_edges(protocol.lengths)
    one_pass = not length_dependent and one_pass_is_exact(model, windows, longest, head=head)
    ends = run_ends(model, edges, protocol.targets, one_pass=one_pass)
    tick = _ticker(plan, ends[1:], progress)

    def rows(what: str, columns: int) -> Tensor:
        return torch.from_numpy(samples.losses(what, (len(windows.documents), columns)))

    by_position = position_losses(
        model, windows, ends, head=head, tick=tick, out=rows("positions", longest - 1)
    )
    # The longest window is the one that the position bins have read already.
    by_length = {longest: by_position[:, -protocol.targets :]}
    for length in protocol.lengths[:-1]:
        by_length[length] = batched_losses(
            model,
            windows.suffix(length),
            keep=protocol.targets,
            head=head,
            tick=tick,
            out=rows(f"targets-{length}", protocol.targets),
        )
    tasks = {
        task: {n: _ask(model, asked, samples, tick) for n, asked in by_length.items()}
        for task, by_length in plan.prompts.items()
    }
    progress(1.0)
    configuration: dict[str, Json] = {
        **protocol_settings(protocol, windows),
        **model_settings(model),
        "patch": patch,
        "position_bins": _runs_in_words(ends, edges, protocol.targets),
        "not_asked": dict(plan.not_asked),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Evaluation(
        label=label,
        lengths=protocol.lengths,
        trained_length=protocol.trained_length,
        edges=edges,
        documents=windows.documents,
        target_losses={length: by_length[length].numpy() for length in protocol.lengths},
        position_losses=by_position.numpy(),
        tasks=tasks,
        protocol=plan.digest(),
        configuration=configuration,
        seed=protocol.seed,
    )


def _ask(
    model: PreTrainedModel, prompts: Sequence[Prompt], samples: Samples, tick: Tick
) -> TaskScores:
    """Scores of all prompts of one task and length, in batches that are asked whole or not at all."""
    task, length = prompts[0].task, prompts[0].length
    done = samples.answers(task, length)
    per_batch = max(1, TOKENS_PER_BATCH // length)
    for start in range(0, len(prompts), per_batch):
        batch = prompts[start : start + per_batch]
        if any(prompt.number not in done for prompt in batch):
            samples.add(
                Answer(
                    candidate=samples.candidate,
                    task=task,
                    length=length,
                    doc_id=prompt.number,
                    score=score,
                    prompt_hash=prompt.digest,
                )
                for prompt, score in zip(batch, choose(model, batch), strict=True)
            )
        tick(len(batch), length)
    done = samples.answers(task, length)
    return TaskScores(
        scores=np.array([done[prompt.number].score for prompt in prompts]),
        gains=None,
        depths=_numbers(prompt.depth for prompt in prompts),
        distances=_numbers(prompt.distance for prompt in prompts),
        chance=float(np.mean([prompt.chance for prompt in prompts])),
        digest=digest(list(prompts)),
    )


def _numbers(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values])


def _runs_in_words(ends: Sequence[int], edges: Sequence[int], targets: int) -> str:
    if len(ends) == 2:
        return "one pass"
    return "one run per bin" if ends == edges else f"one run per {targets} tokens"


def _ticker(plan: Plan, ends: Sequence[int], progress: Callable[[float], None]) -> Tick:
    """Turns finished batches into the share of all work, by tokens and their square."""

    def work(sequences: int, length: int) -> float:
        return sequences * length * (1 + length / _QUADRATIC_FROM)

    windows = len(plan.windows.documents)
    total = sum(work(windows, length) for length in [*ends, *plan.protocol.lengths[:-1]])
    for by_length in plan.prompts.values():
        total += sum(work(len(prompts), length) for length, prompts in by_length.items())
    done = 0.0

    def tick(sequences: int, length: int) -> None:
        nonlocal done
        done += work(sequences, length)
        progress(min(1.0, done / total))

    return tick


def _check_vocabulary(model: PreTrainedModel, windows: Windows) -> None:
    rows = int(model.config.get_text_config().vocab_size)
    if (largest := int(windows.input_ids.max())) >= rows:
        raise DataError(
            f"the tokenizer gives token {largest}, but the model knows {rows} tokens; load the "
            "tokenizer that was saved with this model"
        )
