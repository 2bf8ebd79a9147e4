"""All prompts of an evaluation: of a list of tasks, by length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ropepatch.errors import DataError, PromptLengthError
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, Task, expand
from ropepatch.evals.tasks.source import Source

Questions = Mapping[str, Mapping[int, list[Prompt]]]  #: by task and length


@dataclass(frozen=True)
class PromptSet:
    """Prompts that models are compared by."""

    prompts: Questions = field(default_factory=dict)  #: a task that cannot be asked is absent
    not_asked: Mapping[str, str] = field(default_factory=dict)  #: why, by task, or task and length


def make_prompts(
    names: Sequence[str], source: Source, *, lengths: Sequence[int], count: int, seed: int = 0
) -> PromptSet:
    """`count` prompts of each task and length; the first ones of more prompts are the same.

    A task that does not fit into a length, or that cannot be made of the source, is left out with the
    reason. Raises ConfigError for unknown tasks and for QA without a file.
    """
    prompts: dict[str, Mapping[int, list[Prompt]]] = {}
    not_asked: dict[str, str] = {}
    for task in expand(names, source):
        try:
            made, short = _by_length(task, source, lengths, count, seed)
        except DataError as error:
            not_asked[task.name] = str(error)
            continue
        if made:
            prompts[task.name] = made
            not_asked |= {f"{task.name} in {n} tokens": reason for n, reason in short.items()}
        else:
            not_asked[task.name] = f"fits into none of the lengths; {short[lengths[-1]]}"
    return PromptSet(prompts, not_asked)


def _by_length(
    task: Task, source: Source, lengths: Sequence[int], count: int, seed: int
) -> tuple[dict[int, list[Prompt]], dict[int, str]]:
    """Prompts, and where the length is too short for them, how short."""
    made: dict[int, list[Prompt]] = {}
    short: dict[int, str] = {}
    for length in lengths:
        try:
            made[length] = [task.prompt(source, Place(length, n, seed)) for n in range(count)]
        except PromptLengthError as error:
            short[length] = str(error)
    return made, short
