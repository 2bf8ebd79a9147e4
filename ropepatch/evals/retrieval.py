"""Retrieval by forced choice: of the values in the context, which does the model rate highest?

Guessing among the values in the context is right once in `pairs`; that, not one over the
vocabulary, is the chance level that every result carries.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropepatch.corpus import RetrievalPrompt, RetrievalVocabulary, retrieval_prompt
from ropepatch.evals.tasks.prompt import Prompt


def retrieval_prompts(
    vocabulary: RetrievalVocabulary,
    texts: Sequence[Tensor],
    *,
    length: int,
    count: int,
    pairs: int = 8,
    bos: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
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
        prompts.append(_as_prompt(prompt, number, length, bos))
    return prompts


def choose(model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[float]:
    """1 where the model rates the right value highest, else 0. A tie counts as wrong."""
    input_ids = torch.stack([prompt.input_ids for prompt in prompts]).to(model.device)
    with torch.no_grad():  # not inference_mode, see batched_losses
        logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    return [
        float(all(float(row[prompt.answer]) > float(row[c]) for c in prompt.candidates[1:]))
        for row, prompt in zip(logits.float().cpu(), prompts, strict=True)
    ]


def _as_prompt(prompt: RetrievalPrompt, number: int, length: int, bos: int | None) -> Prompt:
    start = [] if bos is None else [torch.tensor([bos])]
    values = [prompt.answer, *(value for value in prompt.candidates if value != prompt.answer)]
    return Prompt(
        task="kv",
        number=number,
        length=length,
        input_ids=torch.cat([*start, prompt.input_ids]),
        references=(),
        answer=torch.tensor(values[:1]),
        candidates=tuple(torch.tensor([value]) for value in values),
        depth=None,
        distance=prompt.distance,
        max_new_tokens=0,
        chance=1 / len(values),
        without=None,
    )
