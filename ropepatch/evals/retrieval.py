"""Retrieval by forced choice: of the values in the context, which does the model rate highest?

Guessing among the values in the context is right once in `pairs`; that, not one over the
vocabulary, is the chance level that every result carries.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ropepatch.corpus import RetrievalPrompt, RetrievalVocabulary, retrieval_prompt
from ropepatch.errors import DataError
from ropepatch.evals.losses import TOKENS_PER_BATCH, Tick, no_tick


@dataclass(frozen=True)
class RetrievalScores:
    """Which prompts of one length were answered rightly."""

    correct: NDArray[np.bool_]  #: (prompts,)
    distance: NDArray[np.int64]  #: (prompts,) tokens from the key to its query
    chance: float  #: share that guessing among the values in context gets right
    digest: str  #: equal for two evaluations that asked the same prompts


def retrieval_prompts(
    vocabulary: RetrievalVocabulary,
    texts: Sequence[Tensor],
    *,
    length: int,
    count: int,
    pairs: int = 8,
    bos: int | None = None,
    seed: int = 0,
) -> list[RetrievalPrompt]:
    """`count` prompts of exactly `length` tokens; number i depends on `seed`, `length` and i."""
    prompts = []
    for number in range(count):
        # Each prompt has a seed of its own, so that more prompts do not change the first ones.
        prompt_seed = int(np.random.SeedSequence((seed, length, number)).generate_state(1)[0])
        prompt = retrieval_prompt(
            vocabulary,
            texts[number % len(texts)],
            length=length - (bos is not None),
            pairs=pairs,
            seed=prompt_seed,
        )
        prompts.append(prompt if bos is None else _with_bos(prompt, bos))
    return prompts


def score_prompts(
    model: PreTrainedModel, prompts: Sequence[RetrievalPrompt], *, tick: Tick = no_tick
) -> RetrievalScores:
    """Forced choice over prompts of one length. A tie with a wrong value counts as wrong."""
    lengths = {len(prompt.input_ids) for prompt in prompts}
    if len(lengths) != 1:
        raise DataError(f"prompts of one length are needed, found lengths {sorted(lengths)}")
    (length,) = lengths
    per_batch = max(1, TOKENS_PER_BATCH // length)
    correct: list[bool] = []
    for start in range(0, len(prompts), per_batch):
        batch = prompts[start : start + per_batch]
        with torch.no_grad():  # not inference_mode, see batched_losses
            correct += _choose(model, batch)
        tick(len(batch), length)
    return RetrievalScores(
        correct=np.array(correct),
        distance=np.array([prompt.distance for prompt in prompts]),
        chance=float(np.mean([1 / len(prompt.candidates) for prompt in prompts])),
        digest=_digest(prompts),
    )


def _choose(model: PreTrainedModel, prompts: Sequence[RetrievalPrompt]) -> list[bool]:
    input_ids = torch.stack([prompt.input_ids for prompt in prompts]).to(model.device)
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    return [
        all(
            float(row[prompt.answer]) > float(row[c])
            for c in prompt.candidates
            if c != prompt.answer
        )
        for row, prompt in zip(logits.float().cpu(), prompts, strict=True)
    ]


def _with_bos(prompt: RetrievalPrompt, bos: int) -> RetrievalPrompt:
    input_ids = torch.cat([torch.tensor([bos]), prompt.input_ids])
    return RetrievalPrompt(input_ids, prompt.answer, prompt.candidates, prompt.distance)


def _digest(prompts: Sequence[RetrievalPrompt]) -> str:
    content = torch.stack([prompt.input_ids for prompt in prompts]).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
