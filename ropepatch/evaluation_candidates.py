"""The models of a command line: what they are called, and what tells that one has changed."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from ropepatch.checkpoint.opening import open_tokenizer
from ropepatch.errors import ConfigError
from ropepatch.evals.candidates import Candidate, check_adapter, method_candidates


def named_candidates(
    models: Sequence[str],
    base: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    methods: Sequence[str],
    factors: Sequence[float],
    trained: int,
) -> list[Candidate]:
    """The base, which is the first of `models`, the others, and every method at every factor.

    Raises ConfigError for what cannot be compared to the base, SidecarError for an adapter that does
    not say what it was trained on.
    """
    name, *sources = models
    found = [
        Candidate(_label(name)),
        *(_candidate(source, name, tokenizer) for source in sources),
        *method_candidates(base, methods, factors, trained),
    ]
    labels = [candidate.label for candidate in found]
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"models need names of their own; found {', '.join(labels)}; name each of them once, and "
            "rename directories that are called alike"
        )
    return found


def fingerprint(candidate: Candidate, base_name: str) -> str:
    """Changes when another model is at the same place."""
    files = _files(candidate.source or base_name)
    return hashlib.sha256(repr((asdict(candidate), files)).encode()).hexdigest()[:16]


def _label(source: str) -> str:
    """A directory's last name, after its parent's where training named it."""
    here = Path(source)
    if not here.is_dir():
        return source
    here = here.resolve()
    return f"{here.parent.name}/{here.name}" if here.name == "final" else here.name


def _candidate(source: str, base_name: str, tokenizer: PreTrainedTokenizerBase) -> Candidate:
    candidate = Candidate(_label(source), source=source)
    if candidate.is_adapter:
        check_adapter(Path(source))
    elif open_tokenizer(source).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{source} has another tokenizer than {base_name}, so that they do not read the same "
            "tokens; measure each by itself (ropepatch eval --tasks ppl) and compare bits per byte"
        )
    return candidate


def _files(source: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a checkpoint's files; none of one on the Hub."""
    here = Path(source)
    found = sorted(here.iterdir()) if here.is_dir() else []
    return [(each.name, (stat := each.stat()).st_size, stat.st_mtime_ns) for each in found]
