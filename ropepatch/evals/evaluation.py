"""What one evaluation measured, and the paired difference of two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ropepatch.errors import DataError
from ropepatch.evals.statistics import (
    Floats,
    Interval,
    bootstrap_mean,
    mean_score,
    paired_difference,
)
from ropepatch.evals.tasks.scores import TaskScores

if TYPE_CHECKING:
    from ropepatch.evals.perplexity import Perplexity

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Bin = tuple[int, int]  #: tokens first … last + 1 of a window


@dataclass(frozen=True)
class Evaluation:
    """One model at one stage. Raw losses and answers are kept, so that any two can be paired."""

    label: str
    lengths: tuple[int, ...]  #: tokens in a window, ascending
    trained_length: int
    edges: tuple[int, ...]  #: of the position bins
    documents: NDArray[np.int64]  #: (windows,) document of each window, the unit of the bootstrap
    target_losses: Mapping[int, NDArray[np.float32]]  #: by length, (windows, targets), in nats
    position_losses: NDArray[np.float32]  #: (windows, longest − 1), see losses.py, in nats
    tasks: Mapping[str, Mapping[int, TaskScores]]  #: by name and length, those that were asked
    protocol: str  #: equal for two evaluations that read the same tokens
    configuration: Mapping[str, Json]
    seed: int = 0
    perplexities: Sequence["Perplexity"] = ()  #: by a named protocol, where one was asked for

    def target_loss(self, length: int) -> Interval:
        """Loss of the fixed targets in a window of `length` tokens."""
        return bootstrap_mean(self.target_means(length), self.documents, seed=self.seed)

    def context_gain(self, length: int) -> Interval:
        """Loss of the same targets at `length` minus that at the trained length (nearest below)."""
        short, long = self.target_means(self.reference_length), self.target_means(length)
        return paired_difference(short, long, self.documents, seed=self.seed)

    @property
    def reference_length(self) -> int:
        """The longest measured length within the trained one, or the shortest of all."""
        within = [length for length in self.lengths if length <= self.trained_length]
        return max(within, default=min(self.lengths))

    @property
    def extended_length(self) -> int | None:
        """The longest measured length that the active patch is made for."""
        target = self.patch.get("max_position_embeddings")
        fitting = [n for n in self.lengths if isinstance(target, int | float) and n <= target]
        return max(fitting, default=None)

    @property
    def made_for(self) -> int:
        """The longest measured length that the active patch is made for; of all if none says."""
        return self.extended_length or self.lengths[-1]

    @property
    def lengths_beyond(self) -> tuple[int, ...]:
        """The measured lengths above the trained one."""
        return tuple(length for length in self.lengths if length > self.trained_length)

    @property
    def lengths_gained(self) -> tuple[int, ...]:
        """Those of them that the active patch is made for."""
        return tuple(length for length in self.lengths_beyond if length <= self.made_for)

    @property
    def patch(self) -> Mapping[str, Json]:
        """The active patch as the configuration has it; empty without one."""
        patch = self.configuration.get("patch")
        return patch if isinstance(patch, dict) else {}

    @property
    def not_asked(self) -> dict[str, str]:
        """Why prompts are missing, by task, or by task and length."""
        reasons = self.configuration.get("not_asked")
        return {k: str(v) for k, v in reasons.items()} if isinstance(reasons, dict) else {}

    @property
    def within_trained(self) -> Bin:
        """The tokens within the trained length, as far as windows go."""
        return 1, min(self.trained_length, self.edges[-1])

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The position bins, from the start of the window to its end."""
        return tuple(pairwise(self.edges))

    def bin_loss(self, positions: Bin) -> Interval:
        """Loss of the tokens at `positions` of all windows."""
        return bootstrap_mean(self.bin_means(positions), self.documents, seed=self.seed)

    def bin_means(self, positions: Bin) -> Floats:
        """Mean loss of the tokens at `positions`, (windows,)."""
        first, end = positions
        return _row_means(self.position_losses[:, first - 1 : end - 1])

    def asked(self, task: str, length: int) -> TaskScores | None:
        """The scores of a task at a length, or None where nothing was asked."""
        return self.tasks.get(task, {}).get(length)

    def score(self, task: str, length: int, *, beyond: int = 0) -> Interval | None:
        """Mean score of the prompts whose needle is at least `beyond` tokens away; None for none."""
        if (asked := self.asked(task, length)) is None:
            return None
        scores = asked.scores[asked.distances >= beyond] if beyond else asked.scores
        return mean_score(scores, seed=self.seed) if len(scores) else None

    def chance(self, task: str) -> float | None:
        """Mean score that guessing gives in a task; None where nothing was asked."""
        return max((scores.chance for scores in self.tasks.get(task, {}).values()), default=None)

    @property
    def broken_lengths(self) -> tuple[int, ...]:
        """Windows in which some loss is no finite number: weights or positions are broken."""
        return tuple(n for n, each in self.target_losses.items() if not np.isfinite(each).all())

    def target_means(self, length: int) -> Floats:
        """Mean loss of the fixed targets in a window of `length` tokens, (windows,)."""
        return _row_means(self.target_losses[length])


@dataclass(frozen=True)
class Comparison:
    """After minus before, paired by window and by prompt."""

    before: str
    after: str
    target_losses: Mapping[int, Interval]  #: by length, in nats per token
    bin_losses: Mapping[Bin, Interval]  #: by position bin, in nats per token
    within_trained: Interval  #: all tokens within the trained length, in nats per token
    tasks: Mapping[str, Mapping[int, Interval]]  #: by name and length; what was not asked is absent


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Paired differences. Raises DataError unless both evaluations read the same tokens."""
    if before.protocol != after.protocol:
        raise DataError(
            f"{before.label!r} and {after.label!r} were not measured on the same windows and "
            f"prompts (protocol {before.protocol} and {after.protocol}); evaluate both with the "
            "same documents, lengths, counts and seed"
        )

    def difference(first: Floats, second: Floats) -> Interval:
        return paired_difference(first, second, before.documents, seed=before.seed)

    within = before.within_trained
    return Comparison(
        before=before.label,
        after=after.label,
        target_losses={
            length: difference(before.target_means(length), after.target_means(length))
            for length in before.lengths
        },
        bin_losses={b: difference(before.bin_means(b), after.bin_means(b)) for b in before.bins},
        within_trained=difference(before.bin_means(within), after.bin_means(within)),
        tasks={
            task: {
                length: paired_score(scores, after.tasks[task][length], before.seed)
                for length, scores in by_length.items()
            }
            for task, by_length in before.tasks.items()
        },
    )


def _row_means(losses: NDArray[np.float32]) -> Floats:
    means: Floats = losses.mean(axis=1, dtype=np.float64)
    return means


def paired_score(before: TaskScores, after: TaskScores, seed: int) -> Interval:
    """Change of the mean score, prompt by prompt."""
    prompts = np.arange(len(before.scores))
    return paired_difference(before.scores, after.scores, prompts, seed=seed)
