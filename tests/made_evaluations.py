"""Evaluations that were drawn, not measured: losses with effects of documents, answers by rates."""

import math

import numpy as np

from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.losses import bin_edges
from ropepatch.evals.perplexity import DocumentScore, Perplexity
from ropepatch.evals.tasks.scores import TaskScores

LENGTHS = (128, 256, 512, 1024)
TRAINED = 256
YARN = {"method": "yarn", "options": {"factor": 4.0}, "max_position_embeddings": 1024}


def made_evaluation(
    label="model",
    losses=(0.0, 0.0, 0.0, 0.0),
    rates=(0.9, 0.9, 0.9, 0.9),
    *,
    seed=0,
    documents=20,
    noise=0.03,
    prompts=64,
    chance=0.125,
    patch=None,
    tasks=("kv",),
    **changes,
):
    """Nats above 3 by length, and shares of right answers; `seed` draws what is the model's own.

    Documents are equally hard for all models, which differ on each by `noise`, and by as much again
    on each of its two windows.
    """
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(1).normal(3.0, 0.5, size=documents)
    unit = np.repeat(np.arange(documents), 2)

    def drawn(loss, columns):
        own = rng.normal(0, noise, size=documents)[unit] + rng.normal(0, noise, size=len(unit))
        tokens = np.broadcast_to((hardness[unit] + own + loss)[:, None], (len(unit), columns))
        return tokens.astype(np.float32)

    return Evaluation(
        **{
            "label": label,
            "lengths": LENGTHS,
            "trained_length": TRAINED,
            "edges": bin_edges(LENGTHS),
            "documents": unit,
            "target_losses": {n: drawn(x, 8) for n, x in zip(LENGTHS, losses, strict=True)},
            "position_losses": drawn(losses[1], LENGTHS[-1] - 1),
            "tasks": {
                task: {
                    length: made_scores(rng.random(prompts) < rate, length, chance)
                    for length, rate in zip(LENGTHS, rates, strict=True)
                }
                for task in tasks
            },
            "protocol": "same",
            "configuration": {"patch": patch, "targets": 8, "pairs": 8, "windows": 2, "seed": 0},
            **changes,
        }
    )


def made_scores(scores, length, chance=0.125):
    """Needles at even distances, the first prompt's nearest."""
    count = len(scores)
    distances = np.linspace(1, length, count)
    return TaskScores(
        np.asarray(scores, dtype=float), None, 1 - distances / length, distances, chance, "same"
    )


def made_perplexity(protocol, length, nats, *, after=0, tokens=100):
    """Of documents with so many `nats` (None: too short) on 100 tokens, which are 200 bytes long."""
    scores = [
        None if loss is None else DocumentScore(loss, tokens, loss, tokens, 50 * tokens, 2 * tokens)
        for loss in nats
    ]
    names = tuple(f"d{number}" for number in range(len(nats)))
    digest = f"{protocol} {length} {after}"
    return Perplexity(protocol, length, after, digest, True, math.e, names, tuple(scores))
