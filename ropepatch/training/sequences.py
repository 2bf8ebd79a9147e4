"""The sequences that a recipe trains on, and how many of them."""

from itertools import accumulate

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document, RetrievalVocabulary, encode
from ropepatch.training.distributed import replicas
from ropepatch.training.mixture import TrainingMixture
from ropepatch.training.recipe import Recipe
from ropepatch.training.sections import DataRecipe
from ropepatch.training.text import SkippingWindows, TextSource, Windows


def tokens_per_step(recipe: Recipe) -> int:
    """Tokens in one optimizer step, on all devices; the mean over the run where stages differ."""
    steps = [stage.steps for stage in recipe.stages] or [recipe.training.max_steps]
    tokens = sum(count * length for count, length in zip(steps, recipe.lengths, strict=True))
    return _sequences_per_step(recipe) * tokens // recipe.training.max_steps


def _sequences_per_step(recipe: Recipe) -> int:
    """Sequences in one optimizer step, on all devices of this launch."""
    on_one = recipe.training.per_device_batch_size * recipe.training.gradient_accumulation
    return on_one * replicas(recipe.distributed)


def training_data(
    recipe: Recipe, documents: list[Document], tokenizer: PreTrainedTokenizerBase
) -> Dataset[dict[str, Tensor]]:
    """As many sequences as the run takes, in the order in which it takes them."""
    shares = recipe.data.mixture
    vocabulary = (
        RetrievalVocabulary.from_tokenizer(tokenizer)
        if shares.need_keys
        else RetrievalVocabulary(keys=(), values=())
    )
    encoded = encode(documents, tokenizer)
    mixtures = [
        TrainingMixture(
            _text(recipe.data, encoded, length),
            vocabulary,
            len(tokenizer),
            samples=recipe.training.max_steps * _sequences_per_step(recipe),
            seed=recipe.data.seed,
            shares=shares,
            target_length=recipe.data.target_length,
        )
        for length in recipe.lengths
    ]
    if not recipe.stages:
        return mixtures[0]
    ends = [*accumulate(stage.steps * _sequences_per_step(recipe) for stage in recipe.stages)]
    # Of each mixture its own part, so that no sequence comes twice.
    parts = zip(mixtures, [0, *ends], ends, strict=False)
    return ConcatDataset([Subset(mixture, range(start, end)) for mixture, start, end in parts])


def _text(recipe: DataRecipe, documents: list[Tensor], length: int) -> TextSource:
    if recipe.positions is not None:
        return SkippingWindows(documents, length, recipe.positions)
    return Windows(documents, length)
