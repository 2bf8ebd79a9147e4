"""What is read, cut from the documents before any model has to run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document
from ropepatch.evals.ledger import Mode, Protocol
from ropepatch.evals.tasks import PromptSet, Questions, Source, make_prompts
from ropepatch.evals.tasks.prompt import digest
from ropepatch.evals.windows import Windows, held_out_windows


@dataclass(frozen=True)
class Plan:
    """What is read, the same for all models that are to be compared."""

    protocol: Protocol
    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    prompts: Questions  #: a task that cannot be asked is absent
    not_asked: Mapping[str, str]  #: by task, or task and length, why it is not

    def digest(self) -> str:
        """Equal for two plans that read and ask the same tokens."""
        asked = [
            (task, length, digest(prompts))
            for task, by_length in self.prompts.items()
            for length, prompts in by_length.items()
        ]
        content = repr((self.protocol, self.windows.digest(), asked))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def plan_evaluation(
    tokenizer: PreTrainedTokenizerBase,
    documents: list[Document],
    *,
    lengths: Sequence[int],
    trained_length: int,
    targets: int = 64,
    windows: int = 50,
    prompts: int = 64,
    prompt_lengths: Sequence[int] | None = None,
    pairs: int = 8,
    bos: bool = False,
    seed: int = 0,
    tasks: Sequence[str] = ("kv",),
    mode: Mode | None = None,
    questions: Mapping[str, Path] | None = None,
    lead: str = "\n",
    haystack: Sequence[Document] = (),
) -> Plan:
    """Windows and prompts, cut from the documents before any model has to run.

    Prompts have the `prompt_lengths`, by default all `lengths`. `questions` are files of the tasks qa_1
    and qa_2; needles start with `lead`, as sentences of the documents do. Prompts are made of the
    `haystack`, by default of the documents that windows are cut from, which are more for more windows.
    Raises DataError for documents that hold too few windows, ConfigError for numbers that contradict
    each other.
    """
    protocol = Protocol(
        lengths=tuple(lengths),
        trained_length=trained_length,
        targets=targets,
        windows=windows,
        prompts=prompts,
        pairs=pairs,
        bos=bos,
        seed=seed,
        tasks=tuple(tasks),
        mode=mode,
    )
    cut = _windows(documents, tokenizer, protocol)
    used = haystack or [document for document in documents if document.name in cut.names]
    source = Source(tokenizer, used, bos=bos, lead=lead, questions=questions or {}, pairs=pairs)
    made = _prompts(source, protocol, prompt_lengths or protocol.lengths)
    return Plan(protocol, tokenizer, cut, made.prompts, made.not_asked)


def _prompts(source: Source, protocol: Protocol, lengths: Sequence[int]) -> PromptSet:
    if protocol.prompts == 0:
        return PromptSet()
    return make_prompts(
        protocol.tasks, source, lengths=lengths, count=protocol.prompts, seed=protocol.seed
    )


def _windows(
    documents: list[Document], tokenizer: PreTrainedTokenizerBase, protocol: Protocol
) -> Windows:
    return held_out_windows(
        documents,
        tokenizer,
        longest=protocol.lengths[-1],
        count=protocol.windows,
        targets=protocol.targets,
        bos=protocol.bos,
        seed=protocol.seed,
    )
