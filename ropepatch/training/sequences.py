"""The sequences that a recipe trains on, and how many of them."""

from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import (
    Corpus,
    Document,
    RetrievalVocabulary,
    load_documents,
    standard_library,
    text_files,
)
from ropepatch.training.dataset_text import open_dataset
from ropepatch.training.distributed import replicas
from ropepatch.training.mixture import TrainingMixture
from ropepatch.training.packing import Packs
from ropepatch.training.recipe import Recipe
from ropepatch.training.sections import DataRecipe
from ropepatch.training.text import SkippingWindows, TextSource, Windows
from ropepatch.training.token_cache import Tell, stored_tokens


def tokens_per_step(recipe: Recipe) -> int:
    """Tokens in one optimizer step, on all devices; the mean over the run where stages differ."""
    stages = zip(recipe.all_stages, recipe.lengths, strict=True)
    tokens = sum(stage.steps * length for stage, length in stages)
    return _sequences_per_step(recipe) * tokens // recipe.training.max_steps


def _sequences_per_step(recipe: Recipe) -> int:
    """Sequences in one optimizer step, on all devices of this launch."""
    on_one = recipe.training.per_device_batch_size * recipe.training.gradient_accumulation
    return on_one * replicas(recipe.distributed)


def open_corpus(recipe: DataRecipe) -> Corpus:
    """The documents that a recipe trains on."""
    corpus = _corpus(recipe)
    return corpus.after(recipe.held_out) if recipe.held_out else corpus


def held_out_documents(recipe: Recipe) -> list[Document]:
    """The documents that its evaluation reads, none of which is trained on."""
    source = None if recipe.evaluation is None else recipe.evaluation.source
    if source is None and recipe.data.held_out:
        return list(islice(_corpus(recipe.data), recipe.data.held_out))
    return load_documents(source or "stdlib", "held_out")


def _corpus(recipe: DataRecipe) -> Corpus:
    if recipe.dataset is not None:
        return open_dataset(recipe.dataset, recipe.text_field)
    if recipe.source == "stdlib":
        library = standard_library(recipe.split)
        return Corpus("stdlib", lambda: iter(library))
    return text_files(Path(recipe.source), text_field=recipe.text_field, files=recipe.files)


def training_data(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    tell: Tell | None = None,
) -> Dataset[dict[str, Tensor]]:
    """As many sequences as the run takes, in the order in which it takes them."""
    mixtures = training_mixtures(recipe, corpus, tokenizer, tell)
    if not recipe.stages:
        return mixtures[0]
    ends = stage_ends(recipe)
    # Of each mixture its own part, so that no sequence comes twice.
    parts = zip(mixtures, [0, *ends], ends, strict=False)
    return ConcatDataset([Subset(mixture, range(start, end)) for mixture, start, end in parts])


def stage_ends(recipe: Recipe) -> list[int]:
    """The first sequence after each stage; the last is how many there are."""
    return [*accumulate(stage.steps * _sequences_per_step(recipe) for stage in recipe.all_stages)]


def training_mixtures(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    tell: Tell | None = None,
) -> list[TrainingMixture]:
    """The sequences of the whole run, in the length of every stage."""
    shares = recipe.data.mixture
    vocabulary = (
        RetrievalVocabulary.from_tokenizer(tokenizer)
        if shares.need_keys
        else RetrievalVocabulary(keys=(), values=())
    )
    documents = stored_tokens(corpus, tokenizer, max_tokens=_max_tokens(recipe), tell=tell)
    return [
        TrainingMixture(
            _text(recipe.data, documents, length),
            vocabulary,
            len(tokenizer),
            samples=recipe.training.max_steps * _sequences_per_step(recipe),
            seed=recipe.data.seed,
            shares=shares,
            target_length=recipe.data.target_length,
        )
        for length in recipe.lengths
    ]


def _max_tokens(recipe: Recipe) -> int | None:
    """What the recipe says; of a stream at most what the run can use."""
    dataset = recipe.data.dataset
    if recipe.data.max_tokens is None and dataset is not None and dataset.streaming:
        return recipe.training.max_steps * tokens_per_step(recipe)
    return recipe.data.max_tokens


def _text(recipe: DataRecipe, documents: Sequence[Tensor], length: int) -> TextSource:
    if recipe.packing is not None:
        return Packs(documents, length, recipe.packing)
    if recipe.positions is not None:
        return SkippingWindows(documents, length, recipe.positions)
    return Windows(documents, length)
