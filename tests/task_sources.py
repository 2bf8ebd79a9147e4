"""Haystacks and tokenizers for the tasks, made here and not downloaded."""

import string
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ropepatch.corpus import Document, standard_library
from ropepatch.evals.tasks import Source

CHECKPOINTS = Path(__file__).resolve().parent.parent / "recipes" / "checkpoints"
_MODULES = ("argparse", "difflib", "typing")


@cache
def documents() -> list[Document]:
    """A few held-out modules."""
    return [it for it in standard_library("held_out") if it.name in _MODULES]


@cache
def byte_level() -> PreTrainedTokenizerBase:
    """The tokenizer of the bundled checkpoints."""
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-llama")


@cache
def metaspace(*, one_line: bool = False) -> PreTrainedTokenizerBase:
    """Spaces become `▁`, one stands before a text, as in Llama 2; `one_line`: breaks are lost (T5)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if one_line:
        tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    tokenizer.train_from_iterator([it.text for it in documents()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@cache
def source(kind: str = "byte level") -> Source:
    """Without BOS for the first tokenizer, with it for the second."""
    if kind == "byte level":
        return Source(byte_level(), documents(), lead="\n# ")
    return Source(metaspace(one_line=kind == "one line"), documents(), bos=True)


SOURCES = ("byte level", "metaspace")
