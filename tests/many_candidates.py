"""A base and six candidates with needles, made up, as a report has to show them."""

from dataclasses import replace

import numpy as np
from made_evaluations import LENGTHS, made_evaluation, made_perplexity

from ropepatch.evals.tasks.scores import TaskScores

LONG_LABEL = "checkpoints/a-run-of-mine/" + "with-a-name-that-does-not-break" * 4


def patch(method, factor):
    """A patch as the ledger has it."""
    return {
        "method": method,
        "options": {"factor": float(factor)},
        "original_max_position_embeddings": 256,
        "max_position_embeddings": 256 * factor,
    }


def needles(wrong=1, rows=11):
    """Six prompts at each of `rows` depths, of which `wrong` are answered wrongly; 2 nats at 0 %."""
    depths = np.repeat(np.arange(rows) / 10, 6)
    scores = np.tile(np.arange(6) >= wrong, rows).astype(float)
    gains = (2.0 - 2 * depths).astype(np.float32)
    return TaskScores(scores, gains, depths, (1 - depths) * 900, 0.125, "same")


def candidate(label, losses=(0.0, 0.0, 0.5, 1.0), **settings):
    """Its needles are missing at 90 and 100 % of the longest prompts."""
    made = made_evaluation(label, losses, **settings)
    asked = {n: needles(wrong=i, rows=11 if n < LENGTHS[-1] else 9) for i, n in enumerate(LENGTHS)}
    versions = {"versions": {"torch": "2.13.0"}, "dtype": "torch.float32", "truncated": 0}
    configuration = {**made.configuration, **versions, "documents": [f"d{n}.py" for n in range(99)]}
    return replace(
        made,
        tasks={**made.tasks, "needle": asked},
        configuration=configuration,
        perplexities=[
            made_perplexity("yarn-truncate", n, [300.0, 250.0 + n / 9, 400.0]) for n in LENGTHS
        ],
    )


def stages():
    """Two methods at two factors each, one more, and one without a patch and with a long name."""
    base = candidate("unpatched")
    better, worse = (0.0, 0.0, -0.2, -0.3), (0.5, 0.5, 0.6, 0.7)
    return [
        base,
        candidate("yarn ×2", better, patch=patch("yarn", 2), seed=1),
        candidate("yarn ×4", better, patch=patch("yarn", 4), seed=2),
        candidate("linear ×2", worse, patch=patch("linear", 2), seed=3),
        candidate("linear ×4", worse, patch=patch("linear", 4), seed=4),
        candidate("ntk ×4", patch=patch("ntk", 4), seed=5),
        candidate(LONG_LABEL, seed=6),
    ]
