"""One evaluation: which passes are run, and what is read off each."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropepatch.corpus import Document, RetrievalPrompt, RetrievalVocabulary
from ropepatch.errors import DataError
from ropepatch.evals.evaluation import Evaluation, Json
from ropepatch.evals.ledger import Protocol, active_patch, model_settings, protocol_settings
from ropepatch.evals.losses import (
    Tick,
    batched_losses,
    bin_edges,
    one_pass_is_exact,
    plain_head,
    position_losses,
    run_ends,
)
from ropepatch.evals.retrieval import RetrievalScores, retrieval_prompts, score_prompts
from ropepatch.evals.windows import Windows, held_out_windows
from ropepatch.verification import evaluation_mode

#: Tokens at which attention costs as much as the rest of a small model; only progress uses it.
_QUADRATIC_FROM = 2048


@dataclass(frozen=True)
class Plan:
    """What is read, the same for all models that are to be compared."""

    protocol: Protocol
    windows: Windows
    prompts: Mapping[int, list[RetrievalPrompt]]  #: by length; empty where none are asked
    no_retrieval: str | None  #: why none are asked


def plan_evaluation(
    tokenizer: PreTrainedTokenizerBase,
    documents: list[Document],
    *,
    lengths: Sequence[int],
    trained_length: int,
    targets: int = 64,
    windows: int = 50,
    prompts: int = 64,
    pairs: int = 8,
    bos: bool = False,
    seed: int = 0,
    is_encoder_decoder: bool = False,
) -> Plan:
    """Windows and prompts, cut from the documents before any model has to run.

    Raises DataError for documents that hold too few windows, ConfigError for numbers that
    contradict each other.
    """
    protocol = Protocol(
        lengths=tuple(lengths),
        trained_length=trained_length,
        targets=targets,
        windows=windows,
        prompts=prompts,
        pairs=pairs,
        bos=bos,
        seed=seed,
    )
    cut = held_out_windows(
        documents,
        tokenizer,
        longest=protocol.lengths[-1],
        count=windows,
        targets=targets,
        bos=bos,
        seed=seed,
    )
    asked, reason = _prompts(tokenizer, cut, protocol, is_encoder_decoder)
    return Plan(protocol, cut, asked, reason)


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
) -> Evaluation:
    """Losses and retrieval of one model by a plan. Raises DataError for tokens it does not know."""
    _check_vocabulary(model, plan.windows)
    with evaluation_mode(model):
        return _measure(model, plan, label, progress or (lambda share: None))


def _measure(
    model: PreTrainedModel, plan: Plan, label: str, progress: Callable[[float], None]
) -> Evaluation:
    protocol, windows, prompts = plan.protocol, plan.windows, plan.prompts
    started = time.perf_counter()
    head = plain_head(model)
    patch, length_dependent = active_patch(model)
    longest, edges = protocol.lengths[-1], bin_edges(protocol.lengths)
    one_pass = not length_dependent and one_pass_is_exact(model, windows, longest, head=head)
    ends = run_ends(model, edges, protocol.targets, one_pass=one_pass)
    tick = _ticker(protocol, ends[1:], bool(prompts), progress)

    by_position = position_losses(model, windows, ends, head=head, tick=tick)
    # The longest window is the one that the position bins have read already.
    by_length: dict[int, Tensor] = {longest: by_position[:, -protocol.targets :]}
    for length in protocol.lengths[:-1]:
        by_length[length] = batched_losses(
            model, windows.suffix(length), keep=protocol.targets, head=head, tick=tick
        )
    retrieval = {
        length: score_prompts(model, asked, tick=tick) for length, asked in prompts.items()
    }
    progress(1.0)
    configuration: dict[str, Json] = {
        **protocol_settings(protocol, windows),
        **model_settings(model),
        "patch": patch,
        "position_bins": _runs_in_words(ends, edges, protocol.targets),
        "no_retrieval": plan.no_retrieval,
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
        retrieval=retrieval,
        protocol=_protocol_digest(protocol, windows, retrieval),
        configuration=configuration,
        seed=protocol.seed,
    )


def _runs_in_words(ends: Sequence[int], edges: Sequence[int], targets: int) -> str:
    if len(ends) == 2:
        return "one pass"
    return "one run per bin" if ends == edges else f"one run per {targets} tokens"


def _prompts(
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    protocol: Protocol,
    is_encoder_decoder: bool,
) -> tuple[dict[int, list[RetrievalPrompt]], str | None]:
    """Prompts by length, or none and the reason why retrieval is not measured."""
    if protocol.prompts == 0:
        return {}, "not asked for"
    if is_encoder_decoder:
        return {}, "asked of causal models only"
    try:
        vocabulary = RetrievalVocabulary.from_tokenizer(tokenizer)
    except DataError as error:
        return {}, str(error)
    prompts = {
        length: retrieval_prompts(
            vocabulary,
            windows.texts,
            length=length,
            count=protocol.prompts,
            pairs=protocol.pairs,
            bos=windows.bos,
            seed=protocol.seed,
        )
        for length in protocol.lengths
    }
    return prompts, None


def _protocol_digest(
    protocol: Protocol, windows: Windows, retrieval: dict[int, RetrievalScores]
) -> str:
    prompts = [scores.digest for scores in retrieval.values()]
    content = repr((protocol, windows.digest(), prompts))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _ticker(
    protocol: Protocol,
    ends: Sequence[int],
    retrieval: bool,
    progress: Callable[[float], None],
) -> Tick:
    """Turns finished batches into the share of all work, by tokens and their square."""

    def work(sequences: int, length: int) -> float:
        return sequences * length * (1 + length / _QUADRATIC_FROM)

    total = sum(work(protocol.windows, length) for length in [*ends, *protocol.lengths[:-1]])
    if retrieval:
        total += sum(work(protocol.prompts, length) for length in protocol.lengths)
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
