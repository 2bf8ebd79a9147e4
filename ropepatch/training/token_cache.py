"""Tokens of documents, kept on disk under what they were made of, and mapped into memory.

A run that goes on, or another one on the same text, finds them there; and neither the text nor its
tokens have to fit in memory.
"""

import hashlib
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Corpus, Document, encode
from ropepatch.errors import RopepatchWarning, TokenCacheError

_FORMAT = (
    "ropepatch tokens 1"  #: part of every key: raise it when documents are encoded differently
)
_BATCH = 64  #: documents that are encoded, and held in memory, at a time

Tell = Callable[[str], None]


class StoredTokens(Sequence[Tensor]):
    """The int32 tokens of every document: views of a file that is mapped, not read."""

    def __init__(self, tokens: Tensor, ends: Tensor) -> None:
        self.tokens = tokens  #: of all documents, one after the other
        self.ends = ends.tolist()  #: of each document in `tokens`

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # never sliced
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]


def cache_directory() -> Path:
    """`$ROPEPATCH_CACHE`, or a directory in that of the Hugging Face libraries."""
    return Path(os.environ.get("ROPEPATCH_CACHE") or Path(HF_HOME, "ropepatch"))


def stored_tokens(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    tell: Tell | None = None,
) -> StoredTokens:
    """The tokens of all documents, or of the first ones that have `max_tokens` together.

    They are found by what is in the documents and in the tokenizer, or made. `tell` hears how far
    that is. Raises TokenCacheError for what the file system refuses.
    """
    what = corpus.identity or _digest_documents(corpus)
    key = hashlib.sha256(repr((_FORMAT, what, _digest_tokenizer(tokenizer), max_tokens)).encode())
    path = cache_directory() / f"{key.hexdigest()[:32]}.safetensors"
    stored = _open(path)
    if stored is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, _encoded(corpus, tokenizer, max_tokens, tell))
        # A disk that fills up while tensors are written is a SafetensorError.
        except (OSError, SafetensorError) as error:
            raise TokenCacheError(
                f"cannot keep tokens in {path.parent}: {error}; make room there, or name another "
                "directory in the environment variable ROPEPATCH_CACHE"
            ) from error
        stored = _open(path)
        assert stored is not None
    return stored


def _digest_documents(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        text = document.text.encode("utf-8")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all files that it saves, whatever kind it is."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        files = sorted(Path(directory).iterdir())
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _encoded(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None,
    tell: Tell | None,
) -> Iterator[Tensor]:
    documents, total = iter(corpus), 0
    while batch := list(islice(documents, _BATCH)):
        for tokens in encode(batch, tokenizer):
            yield tokens.to(torch.int32)
            total += len(tokens)
            if max_tokens is not None and total >= max_tokens:
                return
        if tell is not None:
            tell(f"{corpus.name}: {total / 1e6:.1f} M tokens encoded")


def _write(path: Path, documents: Iterable[Tensor]) -> None:
    """Whole or not at all, whoever else writes the same."""
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        raw, aside = Path(scratch, "raw"), Path(scratch, "new")
        ends = [0]
        with raw.open("wb") as file:
            for tokens in documents:
                file.write(tokens.numpy().tobytes())
                ends.append(ends[-1] + len(tokens))
        mapped = torch.from_file(str(raw), shared=False, size=ends[-1], dtype=torch.int32)
        tensors = {"tokens": mapped, "ends": torch.tensor(ends[1:])}
        save_file(tensors, aside, metadata={"crc32": _checksum(tensors)})
        os.replace(aside, path)


def _open(path: Path) -> StoredTokens | None:
    """None where there are none, or none that are whole."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("tokens", "ends")}
            if (file.metadata() or {}).get("crc32") == _checksum(tensors):
                return StoredTokens(**tensors)
    except (OSError, SafetensorError):
        pass
    warnings.warn(
        f"the tokens in {path} are damaged, and are made again", RopepatchWarning, stacklevel=2
    )
    return None


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Of damage to a disk or a file, not of malice."""
    ends = zlib.crc32(tensors["ends"].numpy().tobytes())
    return str(zlib.crc32(tensors["tokens"].numpy().data, ends))
