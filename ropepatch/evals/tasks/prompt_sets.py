"""All prompts of an evaluation: of a list of tasks, by length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ropepatch.errors import DataError, PromptLengthError
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.registry import Place, expand
from ropepatch.evals.tasks.source import Source


@dataclass(frozen=True)
class PromptSet:
    """Prompts that models are compared by."""

    prompts: Mapping[str, Mapping[int, list[Prompt]]]  #: by task and length
    missing: Mapping[str, Mapping[int, str]]  #: why a task is not asked at a length


def make_prompts(
    names: Sequence[str], source: Source, *, lengths: Sequence[int], count: int, seed: int = 0
) -> PromptSet:
    """`count` prompts of each task and length; the first ones of more prompts are the same.

    A task that does not fit into a length is missing there. Raises DataError if none fits anywhere,
    ConfigError for unknown tasks and for QA without a file.
    """
    prompts: dict[str, dict[int, list[Prompt]]] = {}
    missing: dict[str, dict[int, str]] = {}
    for task in expand(names, source):
        for length in lengths:
            places = [Place(length, number, seed) for number in range(count)]
            try:
                made = [task.prompt(source, place) for place in places]
            except PromptLengthError as error:
                missing.setdefault(task.name, {})[length] = str(error)
            else:
                prompts.setdefault(task.name, {})[length] = made
    if missing and not prompts:
        reasons = [reason for by_length in missing.values() for reason in by_length.values()]
        raise DataError(f"no task fits into any of the lengths; {reasons[-1]}")
    return PromptSet(prompts, missing)
