"""Decoding loops of length-dependent methods, and the static patches that they are compared with."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from stock_models import ROTATED
from tiny_models import KINDS, TRAINED_LENGTH, fresh_model

from ropepatch import patch_model

ROUNDING = {"atol": 1e-5, "rtol": 1e-5}  # nemotron answers with large logits
TARGET = 4  # times the trained length of 32: buckets of 32, 64 and 128 tokens
STATIC = {"dynamic_linear": "linear", "dynamic_ntk": "ntk", "dynamic_yarn": "yarn"}
METHODS = [*STATIC, "longrope"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def options(kind, method):
    """longrope needs its lists: short rows unscaled here, long ones by factors that grow."""
    if method != "longrope":
        return {}
    pairs = ROTATED.get(kind, 16) // 2
    long = [1.0 + i for i in range(pairs)]
    # With its default attention factor longrope changes short rows, too, as Phi-3 was trained.
    return {"short_factor": [1.0] * pairs, "long_factor": long, "attention_factor": 1.0}


def dynamic(kind, method, **more):
    return patch_model(fresh_model(kind), method, TARGET, **options(kind, method), **more)


def static(kind, method, bucket):
    """The model whose every row is scaled for `bucket` tokens, by a method that knows no lengths."""
    if bucket == TRAINED_LENGTH:
        return fresh_model(kind)
    if method == "longrope":
        # Unscaled lengths would need the short list: give the long one for both.
        given = options(kind, method)
        given["short_factor"] = given["long_factor"]
        return patch_model(fresh_model(kind), method, TARGET, **given)
    return patch_model(fresh_model(kind), STATIC[method], bucket / TRAINED_LENGTH)


@torch.no_grad()
def step_by_step(model, ids, borders, cache=None, mask=None):
    """Logits of a loop that gives the model what lies between the borders, and its cache."""
    out, more = [], {}
    for start, end in pairwise(borders):
        if mask is not None:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            more = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        answer = model(ids[:, start:end], past_key_values=cache, use_cache=True, **more)
        cache = answer.past_key_values
        out.append(answer.logits)
    return torch.cat(out, 1), cache


class Rendezvous:
    """A forward hook that makes two threads wait for each other before positions are computed."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=30)

    def __call__(self, module, args, output):
        self.barrier.wait()


def in_two_threads(model, work):
    """What work(0) and work(1) give, in threads that meet in the middle of every call of the model."""
    model.model.embed_tokens.register_forward_hook(Rendezvous())
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(work, range(2)))


def one_layer(model):
    """The model without all layers but the first."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ModuleList):
                setattr(module, name, child[:1])
    model.config.num_hidden_layers = 1
    return model
