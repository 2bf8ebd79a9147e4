"""A few windows and prompts of every candidate beforehand, whose answers count.

Its windows are read again: losses are kept by whole batches, and few windows do not make the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ropepatch.evals.candidates import Candidate, Load, Tell, measure_candidates
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.plan import Plan
from ropepatch.evals.samples import Samples


@dataclass(frozen=True)
class Pilot:
    """What was measured by a plan of few windows and prompts."""

    stages: list[Evaluation]
    samples: dict[str, Samples]  #: by candidate

    def hand_on(self, plan: Plan, samples: Samples) -> Samples:
        """`samples` with the answers to prompts that `plan` asks, too."""
        found = self.samples.get(samples.candidate, Samples(samples.candidate))
        for task, by_length in plan.prompts.items():
            for length, prompts in by_length.items():
                asked = {prompt.digest for prompt in prompts}
                samples.add(a for a in found.answers(task, length) if a.prompt in asked)
        return samples


def run_pilot(
    base: nn.Module, candidates: Sequence[Candidate], plan: Plan, load: Load, tell: Tell
) -> Pilot:
    """Measure every candidate by `plan`, in memory."""
    samples = {each.label: Samples(each.label) for each in candidates}
    stages = measure_candidates(
        base,
        candidates,
        plan,
        load,
        tell=lambda label, share: tell(f"pilot: {label}", share),
        samples=samples.__getitem__,
    )
    return Pilot(stages, samples)
