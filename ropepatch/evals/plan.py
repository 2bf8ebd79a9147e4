"""What is read, cut from the documents before any model has to run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document, RetrievalVocabulary
from ropepatch.errors import DataError
from ropepatch.evals.ledger import Protocol
from ropepatch.evals.retrieval import retrieval_prompts
from ropepatch.evals.tasks.prompt import Prompt, digest
from ropepatch.evals.windows import Windows, held_out_windows

Questions = Mapping[str, Mapping[int, list[Prompt]]]  #: by task and length


@dataclass(frozen=True)
class Plan:
    """What is read, the same for all models that are to be compared."""

    protocol: Protocol
    windows: Windows
    prompts: Questions  #: a task that cannot be asked is absent
    not_asked: Mapping[str, str]  #: by task, why it is not

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
    pairs: int = 8,
    bos: bool = False,
    seed: int = 0,
    is_encoder_decoder: bool = False,
) -> Plan:
    """Windows and prompts, cut from the documents before any model has to run.

    Raises DataError for documents that hold too few windows, ConfigError for numbers that
    contradict each other.
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
    )
    cut = held_out_windows(
        documents,
        tokenizer,
        longest=protocol.lengths[-1],
        count=windows,
        targets=targets,
        bos=bos,
        seed=seed,
    )
    asked, not_asked = _questions(tokenizer, cut, protocol, is_encoder_decoder)
    return Plan(protocol, cut, asked, not_asked)


def _kv_prompts(
    tokenizer: PreTrainedTokenizerBase, windows: Windows, protocol: Protocol
) -> dict[int, list[Prompt]]:
    """Prompts by length. Raises DataError for a tokenizer without reserved tokens."""
    vocabulary = RetrievalVocabulary.from_tokenizer(tokenizer)
    return {
        length: retrieval_prompts(
            vocabulary,
            windows.texts,
            length=length,
            count=protocol.prompts,
            pairs=protocol.pairs,
            bos=windows.bos,
            seed=protocol.seed,
        )
        for length in protocol.lengths
    }


def _questions(
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    protocol: Protocol,
    is_encoder_decoder: bool,
) -> tuple[Questions, dict[str, str]]:
    """Prompts, and the reason for every task that is not asked."""
    if protocol.prompts == 0:
        return {}, {"kv": "not asked for"}
    if is_encoder_decoder:
        return {}, {"kv": "asked of causal models only"}
    try:
        return {"kv": _kv_prompts(tokenizer, windows, protocol)}, {}
    except DataError as error:
        return {}, {"kv": str(error)}
