"""Tasks whose answers stand in their context: retrieval, tracing, counting, questions."""

from ropepatch.evals.tasks import cwe, fwe, kv, needle, niah, passkey, qa, vt  # noqa: F401 registers
from ropepatch.evals.tasks.prompt import Prompt
from ropepatch.evals.tasks.prompt_sets import PromptSet, Questions, make_prompts
from ropepatch.evals.tasks.registry import GROUPS, Place, Task, expand, register, task, tasks
from ropepatch.evals.tasks.scores import TaskScores
from ropepatch.evals.tasks.source import Source

__all__ = [
    "GROUPS",
    "Place",
    "Prompt",
    "PromptSet",
    "Questions",
    "Source",
    "Task",
    "TaskScores",
    "expand",
    "make_prompts",
    "register",
    "task",
    "tasks",
]
