"""Log-likelihoods of answers behind their contexts, in nats; only answers reach the head."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropepatch.evals.ledger import active_patch
from ropepatch.patch import planned_length


def answer_log_probs(model: PreTrainedModel, contexts: Tensor, answers: Tensor) -> Tensor:
    """Of every token at every place of the answer. (batch, n), (batch, m) → (batch, m, vocabulary)

    Encoder–decoder models read the context in the encoder, and the answer in the decoder.
    """
    answers = answers.contiguous()
    if model.config.is_encoder_decoder:
        # The model shifts the labels itself, to make of them what the decoder reads.
        logits = model(input_ids=contexts, labels=answers, use_cache=False).logits
    else:
        rows = torch.cat([contexts, answers[:, :-1]], dim=1)
        logits = model(input_ids=rows, use_cache=False, logits_to_keep=answers.shape[1]).logits
    return _log_probs(logits)


def log_likelihoods(model: PreTrainedModel, contexts: Tensor, choices: Tensor) -> Tensor:
    """Of every choice as a whole. (batch, n), (batch, choices, m) → (batch, choices)

    The context is read once, and every choice then goes on from a copy of its cache.
    """
    if model.config.is_encoder_decoder:
        return _after_encoder(model, contexts, choices)
    if choices.shape[2] == 1:
        logits = model(input_ids=contexts, use_cache=False, logits_to_keep=1).logits[:, -1]
        return _log_probs(logits).gather(1, choices[:, :, 0])
    with _planned(model, contexts.shape[1] + choices.shape[2] - 1):
        read = model(input_ids=contexts, use_cache=True, logits_to_keep=1)
        if getattr(read, "past_key_values", None) is None:  # it keeps a state that is no cache
            return _whole_passes(model, contexts, choices)
        likelihoods = _log_probs(read.logits[:, -1]).gather(1, choices[:, :, 0])
        for number, choice in enumerate(choices.unbind(1)):
            cache = copy.deepcopy(read.past_key_values)
            logits = model(input_ids=choice[:, :-1], past_key_values=cache, use_cache=True).logits
            likelihoods[:, number] += of_tokens(_log_probs(logits), choice[:, 1:]).sum(1)
    return likelihoods


def of_tokens(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of the tokens. (batch, m, vocabulary), (batch, m) → (batch, m)"""
    return log_probs.gather(2, tokens[:, :, None])[:, :, 0]


def _whole_passes(model: PreTrainedModel, contexts: Tensor, choices: Tensor) -> Tensor:
    passes = [(answer_log_probs(model, contexts, choice), choice) for choice in choices.unbind(1)]
    return torch.stack([of_tokens(log_probs, ids).sum(1) for log_probs, ids in passes], dim=1)


def _after_encoder(model: PreTrainedModel, contexts: Tensor, choices: Tensor) -> Tensor:
    encoded = model.get_encoder()(input_ids=contexts)
    totals = []
    for choice in choices.unbind(1):
        labels = choice.contiguous()
        logits = model(encoder_outputs=encoded, labels=labels, use_cache=False).logits
        totals.append(of_tokens(_log_probs(logits), labels).sum(1))
    return torch.stack(totals, dim=1)


def _log_probs(logits: Tensor) -> Tensor:
    # In float64, so that two logits that differ do not become equal.
    return logits.double().log_softmax(-1)


def _planned(model: PreTrainedModel, length: int) -> AbstractContextManager[None]:
    """Scales that depend on the length are those of the whole, as in one pass over it."""
    _, length_dependent = active_patch(model)
    return planned_length(model, length) if length_dependent else nullcontext()
