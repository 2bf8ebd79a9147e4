"""Every task by name, and groups of them."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ropepatch.errors import ConfigError, PromptLengthError
from ropepatch.evals.tasks.pieces import Ids
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.source import Source
from ropepatch.spelling import did_you_mean

#: RULER's answers have up to 128 tokens in 4096; a shorter prompt has as large a share of its length.
_TOKENS_PER_ANSWER_TOKEN = 32
LEAST_CONTEXT = 8  #: tokens of a haystack, below which there is nothing to hide in

DEPTHS = 11
_STRIDE = 7  #: has no divisor in common with the depths, so that every one of them has its turn

_WHOLE_TEXTS = (
    "ppl",
    "longppl",
)  #: tasks that ask no prompts, which the commands measure themselves
_TASKS: dict[str, "Task"] = {}


@dataclass(frozen=True)
class Place:
    """Which prompt is made: it depends on nothing else but what it is made of."""

    length: int
    number: int
    seed: int


@dataclass(frozen=True)
class Task(ABC):
    """One kind of question."""

    name: str
    answer_tokens: int  #: that a model may take for its answer, from 4096 tokens on
    any_reference: bool = False  #: whether one reference in an answer is enough

    @abstractmethod
    def prompt(self, source: Source, place: Place) -> Prompt:
        """One prompt. Raises PromptLengthError where the length is too short for it."""

    def generator(self, place: Place) -> np.random.Generator:
        """What a prompt is drawn with."""
        key = (place.seed, zlib.crc32(self.name.encode()), place.length, place.number)
        return np.random.default_rng(np.random.SeedSequence(key))

    def budget(self, length: int, answer: Ids) -> int:
        """Tokens that are kept free for the answer."""
        return max(len(answer), min(self.answer_tokens, length // _TOKENS_PER_ANSWER_TOKEN))

    def room(self, length: int, used: int, least: int = LEAST_CONTEXT) -> int:
        """Tokens that are left for the haystack beside `used` ones, which include the answer's."""
        room = length - used
        if room < least:
            # Other prompts have longer words, and a longer prompt has a longer answer.
            enough = length + (least - room) + used // 8
            raise PromptLengthError(
                f"{self.name} does not fit into {length} tokens: instructions, question and answer take "
                f"{used}, and its context at least {least}; use about {enough} or more"
            )
        return room


def register(*tasks: Task) -> None:
    """Make tasks known by their names."""
    _TASKS.update({task.name: task for task in tasks})


def task(name: str) -> Task:
    """The task of that name. Raises ConfigError if there is none."""
    if name not in _TASKS:
        hint = did_you_mean(name, [*_WHOLE_TEXTS, *GROUPS, *_TASKS])
        raise ConfigError(
            f"there is no task {name!r}{hint}; tasks: {', '.join([*_WHOLE_TEXTS, *tasks()])}; "
            f"groups: {', '.join(GROUPS)}"
        )
    return _TASKS[name]


def tasks() -> list[str]:
    """The names of all tasks."""
    return list(_TASKS)


def grid_depth(number: int) -> float:
    """The depth of prompt `number`: eleven in a row have all of 0, 0.1, … 1, in mixed order."""
    return number * _STRIDE % DEPTHS / (DEPTHS - 1)


RULER_OFFLINE: tuple[str, ...] = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
)
GROUPS: dict[str, tuple[str, ...]] = {
    "ruler": RULER_OFFLINE,
    "niah": RULER_OFFLINE[:8],
    "qa": ("qa_1", "qa_2"),
}


def expand(names: Sequence[str], source: Source) -> list[Task]:
    """Tasks by the names of tasks and groups, each once; `ruler` has QA where a file is given."""
    found: dict[str, Task] = {}
    for name in names:
        members = GROUPS.get(name, (name,))
        if name == "ruler":
            members += tuple(qa for qa in GROUPS["qa"] if qa in source.questions)
        found.update({member: task(member) for member in members})
    return list(found.values())
