"""Stages by the patch that they were measured with."""

from collections.abc import Sequence

from ropepatch.evals.evaluation import Evaluation

TOGETHER = 5  #: stages that a reader can tell apart in one drawing


def method_of(stage: Evaluation) -> str | None:
    """The method of the patch; None without one."""
    return str(stage.patch["method"]) if stage.patch else None


def factor_of(stage: Evaluation) -> float | None:
    """The factor of the patch; None where it has none."""
    options = stage.patch.get("options")
    factor = options.get("factor") if isinstance(options, dict) else None
    return float(factor) if isinstance(factor, int | float) else None


def by_method(stages: Sequence[Evaluation]) -> list[tuple[str, list[Evaluation]]]:
    """All stages as one group without a name, or, if they are too many, the first with each method's.

    A method with more stages than can be told apart has several groups.
    """
    if len(stages) <= TOGETHER:
        return [("", list(stages))]
    base, rest = stages[0], TOGETHER - 1
    methods: dict[str, list[Evaluation]] = {}
    for stage in stages[1:]:
        methods.setdefault(method_of(stage) or "without a patch", []).append(stage)
    return [
        (method, [base, *members[start : start + rest]])
        for method, members in methods.items()
        for start in range(0, len(members), rest)
    ]
