"""One evaluation: which passes are run, and what is read off each."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.adapters.active_positions import positions_digest
from ropepatch.adapters.pretrained import evaluation_mode
from ropepatch.evals.answers import answer_prompts, batches, task_scores
from ropepatch.evals.evaluation import Evaluation, Json
from ropepatch.evals.ledger import active_patch, model_settings, protocol_settings, real_lengths
from ropepatch.evals.losses import (
    Tick,
    batched_losses,
    bin_edges,
    check_vocabulary,
    one_pass_is_exact,
    plain_head,
    position_losses,
    run_ends,
    share_ticker,
    work,
)
from ropepatch.evals.plan import Plan
from ropepatch.evals.samples import Samples
from ropepatch.evals.tasks import Prompt, TaskScores


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
    check_vocabulary(model, plan.windows.input_ids)
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
    started = time.perf_counter()
    protocol, head = plan.protocol, plain_head(model)
    edges = bin_edges(protocol.lengths)
    ends = run_ends(model, edges, protocol.targets, one_pass=_one_pass(model, plan, head))
    tick = share_ticker(work_left(plan, samples, ends[1:]), progress)
    by_position, by_length = _losses(model, plan, ends, head, samples, tick)
    tasks = {
        task: {n: _ask(model, plan, asked, samples, tick) for n, asked in by_length.items()}
        for task, by_length in plan.prompts.items()
    }
    progress(1.0)
    configuration: dict[str, Json] = {
        **_configuration(model, plan),
        "position_bins": _runs_in_words(ends, edges, protocol.targets),
        "not_asked": dict(plan.not_asked),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Evaluation(
        label=label,
        lengths=protocol.lengths,
        trained_length=protocol.trained_length,
        edges=edges,
        documents=plan.windows.documents,
        target_losses={length: by_length[length].numpy() for length in protocol.lengths},
        position_losses=by_position.numpy(),
        tasks=tasks,
        protocol=plan.digest(),
        configuration=configuration,
        seed=protocol.seed,
    )


def _one_pass(model: PreTrainedModel, plan: Plan, head: nn.Module | None) -> bool:
    _, length_dependent = active_patch(model)
    longest = plan.protocol.lengths[-1]
    return not length_dependent and one_pass_is_exact(model, plan.windows, longest, head=head)


def _losses(
    model: PreTrainedModel,
    plan: Plan,
    ends: Sequence[int],
    head: nn.Module | None,
    samples: Samples,
    tick: Tick,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Of every token (windows, longest − 1), and by length of the targets (windows, targets)."""
    protocol, windows = plan.protocol, plan.windows
    longest = protocol.lengths[-1]

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
    return by_position, by_length


def _configuration(model: PreTrainedModel, plan: Plan) -> dict[str, Json]:
    """What can change a number, of the plan and of the model as it is patched."""
    lengths = plan.protocol.lengths
    patch, _ = active_patch(model)
    return {
        **protocol_settings(plan.protocol, plan.windows),
        **real_lengths(lengths, plan.windows, _all_prompts(plan)),
        **model_settings(model),
        "patch": patch,
        "positions": positions_digest(model, lengths),
    }


def _all_prompts(plan: Plan) -> Iterator[Prompt]:
    for by_length in plan.prompts.values():
        for prompts in by_length.values():
            yield from prompts


def _ask(
    model: PreTrainedModel, plan: Plan, prompts: list[Prompt], samples: Samples, tick: Tick
) -> TaskScores:
    """Scores of all prompts of one task and length, in batches that are asked whole or not at all."""
    task, length = prompts[0].task, prompts[0].length
    has_choice = all(len(prompt.candidates) > 1 for prompt in prompts)
    mode = plan.protocol.mode or ("forced_choice" if has_choice else "generate")
    done = {answer.number for answer in samples.answers(task, length)}
    for batch in batches(prompts):
        if any(prompt.number not in done for prompt in batch):
            asked = answer_prompts(model, plan.tokenizer, batch, mode=mode)
            for answers in asked:
                samples.add(answers)
            tick(len(batch), length)
    return task_scores(prompts, samples.answers(task, length), mode)


def _runs_in_words(ends: Sequence[int], edges: Sequence[int], targets: int) -> str:
    if len(ends) == 2:
        return "one pass"
    return "one run per bin" if ends == edges else f"one run per {targets} tokens"


def work_left(plan: Plan, samples: Samples, ends: Sequence[int] = ()) -> float:
    """What a plan still costs; position bins need runs up to `ends`, one over the window by default.

    Only what an earlier run has left counts, so that its pace says how long the rest takes.
    """
    windows, longest = len(plan.windows.documents), plan.protocol.lengths[-1]
    columns = {f"targets-{n}": (plan.protocol.targets, [n]) for n in plan.protocol.lengths[:-1]}
    columns["positions"] = (longest - 1, list(ends) or [longest])
    losses = 0.0
    for what, (width, passes) in columns.items():
        missing = int(np.isnan(samples.losses(what, (windows, width))).any(axis=1).sum())
        losses += sum(work(missing, length) for length in passes)
    return losses + sum(
        work(len(asked) - len(samples.answers(task, length)), length)
        for task, by_length in plan.prompts.items()
        for length, asked in by_length.items()
    )
