"""Answers of a model to prompts, and their scores, in three modes.

forced_choice   the right one of equally long answers is the most likely one; a tie counts as wrong
teacher_forced  every token of the right answer is the most likely one after those before it
generate        the share of references that a greedy answer contains, or for QA whether it has any
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from ropepatch.adapters.pretrained import evaluation_mode
from ropepatch.errors import ConfigError, DataError, LengthError
from ropepatch.evals.ledger import Mode
from ropepatch.evals.likelihoods import answer_log_probs, log_likelihoods, of_tokens
from ropepatch.evals.losses import TOKENS_PER_BATCH
from ropepatch.evals.tasks import Prompt, TaskScores, task
from ropepatch.evals.tasks.prompt import digest

#: Also against what a checkpoint's own settings say.
_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}


@dataclass(frozen=True)
class Answer:
    """What a model answered to one prompt, as a file of samples keeps it."""

    task: str
    length: int
    number: int
    mode: Mode
    prompt: str  #: the prompt's digest
    target: str
    response: str  #: the choice, the most likely tokens, or what was generated
    score: float  #: 0…1
    loss: float | None  #: of the right answer, in nats per token; None where it was generated
    gain: float | None  #: by which `loss` is higher without the needle, in nats per token


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    mode: Mode = "forced_choice",
) -> Iterator[list[Answer]]:
    """Answers, batch by batch; prompts of one length share batches, so they come in another order.

    Raises LengthError where a model has no positions for a prompt, ConfigError for a task that has
    nothing to choose from.
    """
    if mode == "forced_choice" and not all(len(prompt.candidates) > 1 for prompt in prompts):
        raise ConfigError(
            f"{prompts[0].task} has no wrong answers to choose from; use generate or teacher_forced"
        )
    answer = {"forced_choice": _choose, "teacher_forced": _follow, "generate": _generate}[mode]
    for batch in batches(prompts):
        with evaluation_mode(model), torch.no_grad():  # not inference_mode, see batched_losses
            try:
                answers = answer(model, tokenizer, batch)
            except IndexError as error:
                raise LengthError(
                    f"the model has no positions for {batch[0].length} tokens ({error}); use lengths up "
                    "to what it was trained to"
                ) from error
        yield answers


def task_scores(prompts: Sequence[Prompt], answers: Iterable[Answer], mode: Mode) -> TaskScores:
    """Scores of the answers to all prompts of one task and length, wherever they come from."""
    found = {answer.number: answer for answer in answers if answer.mode == mode}
    lost = [
        prompt.number
        for prompt in prompts
        if prompt.number not in found or found[prompt.number].prompt != prompt.digest
    ]
    if lost or len({(prompt.task, prompt.length) for prompt in prompts}) != 1:
        raise DataError(
            "answers to all prompts of one task and length are needed, and the prompts numbered "
            f"{lost[:5]} have none by {mode}, or one to another prompt; answer them again"
        )
    ordered = [found[prompt.number] for prompt in prompts]
    gains = [answer.gain for answer in ordered if answer.gain is not None]
    chances = [prompt.chance if mode == "forced_choice" else 0.0 for prompt in prompts]
    return TaskScores(
        scores=np.array([answer.score for answer in ordered], np.float64),
        gains=np.array(gains, np.float32) if len(gains) == len(ordered) else None,
        depths=_or_nan(prompt.depth for prompt in prompts),
        distances=_or_nan(prompt.distance for prompt in prompts),
        chance=float(np.mean(chances)),
        digest=digest(list(prompts)),
    )


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """RULER's score: the share of references that an answer contains, in any case of letters."""
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)


def string_match_part(answer: str, references: Sequence[str]) -> float:
    """RULER's score of questions: whether an answer contains any reference."""
    return float(any(reference.lower() in answer.lower() for reference in references))


def _or_nan(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Prompts whose parts are equally long, so that none is padded."""
    alike: defaultdict[tuple[int, ...], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        sizes = [len(candidate) for candidate in prompt.candidates]
        shape = (len(prompt.input_ids), len(prompt.answer), prompt.without is None, *sizes)
        alike[shape].append(prompt)
    for group in alike.values():
        size = max(1, TOKENS_PER_BATCH // len(group[0].input_ids))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _stack(rows: Iterable[Tensor], model: PreTrainedModel) -> Tensor:
    return torch.stack(list(rows)).to(model.device)


def _choose(model: PreTrainedModel, tokenizer: Tokenizer, batch: list[Prompt]) -> list[Answer]:
    contexts = _stack((prompt.input_ids for prompt in batch), model)
    choices = _stack((torch.stack(prompt.candidates) for prompt in batch), model)
    likelihoods = log_likelihoods(model, contexts, choices)
    right = likelihoods[:, 0] > likelihoods[:, 1:].amax(1)
    chosen = choices[torch.arange(len(batch)), likelihoods.argmax(1)]
    texts = [str(tokenizer.decode(ids)) for ids in chosen]
    losses = (-likelihoods[:, 0] / choices.shape[2]).tolist()
    without = _losses_without(model, batch, choices[:, 0])
    return _answers(tokenizer, batch, "forced_choice", right.tolist(), texts, losses, without)


def _follow(model: PreTrainedModel, tokenizer: Tokenizer, batch: list[Prompt]) -> list[Answer]:
    contexts = _stack((prompt.input_ids for prompt in batch), model)
    answers = _stack((prompt.answer for prompt in batch), model)
    log_probs = answer_log_probs(model, contexts, answers)
    likeliest = log_probs.argmax(-1)
    right = (likeliest == answers).all(1)
    texts = [str(tokenizer.decode(ids)) for ids in likeliest]
    losses = (-of_tokens(log_probs, answers).mean(1)).tolist()
    without = _losses_without(model, batch, answers)
    return _answers(tokenizer, batch, "teacher_forced", right.tolist(), texts, losses, without)


def _generate(model: PreTrainedModel, tokenizer: Tokenizer, batch: list[Prompt]) -> list[Answer]:
    contexts = _stack((prompt.input_ids for prompt in batch), model)
    made = model.generate(  # type: ignore[operator]
        input_ids=contexts,
        attention_mask=torch.ones_like(contexts),
        # A key's value is one token, for which no place is kept as nothing reads it.
        generation_config=GenerationConfig(
            max_new_tokens=max(len(batch[0].answer), batch[0].max_new_tokens), **_GREEDY
        ),
    )
    start = 1 if model.config.is_encoder_decoder else contexts.shape[1]
    texts = [str(tokenizer.decode(_until_end(ids, model))) for ids in made[:, start:]]
    match = string_match_part if task(batch[0].task).any_reference else string_match_all
    scores = [match(text, p.references) for text, p in zip(texts, batch, strict=True)]
    nothing = [None] * len(batch)
    return _answers(tokenizer, batch, "generate", scores, texts, nothing, nothing)


def _until_end(ids: Tensor, model: PreTrainedModel) -> list[int]:
    """Generated tokens up to the end of the text; behind it stands padding."""
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    return list(takewhile(lambda token: token not in ends, ids.tolist()))


def _losses_without(
    model: PreTrainedModel, batch: list[Prompt], answers: Tensor
) -> list[float] | list[None]:
    """Loss of the right answers in contexts without the needle, where prompts have such."""
    contexts = [prompt.without for prompt in batch if prompt.without is not None]
    if not contexts:
        return [None] * len(batch)
    log_probs = answer_log_probs(model, _stack(contexts, model), answers)
    losses: list[float] = (-of_tokens(log_probs, answers).mean(1)).tolist()
    return losses


def _answers(
    tokenizer: Tokenizer,
    batch: list[Prompt],
    mode: Mode,
    scores: Sequence[float],
    texts: Sequence[str],
    losses: Sequence[float | None],
    without: Sequence[float | None],
) -> list[Answer]:
    return [
        Answer(
            task=prompt.task,
            length=prompt.length,
            number=prompt.number,
            mode=mode,
            prompt=prompt.digest,
            target=str(tokenizer.decode(prompt.answer)),
            response=text,
            score=float(score),
            loss=loss,
            gain=None if loss is None or other is None else other - loss,
        )
        for prompt, score, text, loss, other in zip(
            batch, scores, texts, losses, without, strict=True
        )
    ]
