"""What a model scored in one task at one length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TaskScores:
    """Of one task at one length; row i is prompt number i for every model."""

    scores: NDArray[np.float64]  #: (prompts,) 0…1
    gains: NDArray[np.float32] | None  #: (prompts,) retrieval gain, nats per answer token
    depths: NDArray[np.float64]  #: (prompts,) see Prompt.depth; NaN where the task has none
    distances: NDArray[np.float64]  #: (prompts,) see Prompt.distance; NaN where the task has none
    chance: float  #: mean score of guessing
    digest: str  #: equal for two evaluations that asked the same prompts
