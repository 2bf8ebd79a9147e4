"""Text to train and measure on: documents, their tokens, and retrieval tasks built from them."""

from ropepatch.corpus.documents import (
    HELD_OUT_MODULES,
    Corpus,
    Document,
    Split,
    standard_library,
)
from ropepatch.corpus.files import load_documents, read_documents, text_files
from ropepatch.corpus.retrieval import (
    RetrievalPrompt,
    RetrievalVocabulary,
    retrieval_prompt,
    retrieval_sequence,
)
from ropepatch.corpus.tokenizer import encode, train_tokenizer

__all__ = [
    "HELD_OUT_MODULES",
    "Corpus",
    "Document",
    "RetrievalPrompt",
    "RetrievalVocabulary",
    "Split",
    "encode",
    "load_documents",
    "read_documents",
    "retrieval_prompt",
    "retrieval_sequence",
    "standard_library",
    "text_files",
    "train_tokenizer",
]
