"""The sequences that a recipe trains on, and how many of them."""

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document, RetrievalVocabulary, encode
from ropepatch.training.mixture import TrainingMixture
from ropepatch.training.recipe import Recipe
from ropepatch.training.sections import DataRecipe
from ropepatch.training.text import SkippingWindows, TextSource, Windows


def tokens_per_step(recipe: Recipe) -> int:
    """Tokens in one optimizer step, on one device."""
    return _sequences_per_step(recipe) * recipe.data.length


def _sequences_per_step(recipe: Recipe) -> int:
    """Sequences in one optimizer step, on one device."""
    return recipe.training.per_device_batch_size * recipe.training.gradient_accumulation


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
    return TrainingMixture(
        _text(recipe.data, encode(documents, tokenizer)),
        vocabulary,
        len(tokenizer),
        samples=recipe.training.max_steps * _sequences_per_step(recipe),
        seed=recipe.data.seed,
        shares=shares,
        target_length=recipe.data.target_length,
    )


def _text(recipe: DataRecipe, documents: list[Tensor]) -> TextSource:
    if recipe.positions is not None:
        return SkippingWindows(documents, recipe.length, recipe.positions)
    return Windows(documents, recipe.length)
