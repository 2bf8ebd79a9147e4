"""The sequences that a recipe trains on, and how many of them."""

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ropepatch.corpus import Document, RetrievalVocabulary, encode
from ropepatch.training.distributed import replicas
from ropepatch.training.mixture import TrainingMixture
from ropepatch.training.recipe import Recipe
from ropepatch.training.skipped_positions import WithSkippedPositions


def tokens_per_step(recipe: Recipe) -> int:
    """Tokens in one optimizer step, on all devices of this launch."""
    return _sequences_per_step(recipe) * recipe.data.length


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
    mixture = TrainingMixture(
        encode(documents, tokenizer),
        vocabulary,
        len(tokenizer),
        length=recipe.data.length,
        samples=recipe.training.max_steps * _sequences_per_step(recipe),
        seed=recipe.data.seed,
        shares=shares,
        target_length=recipe.data.target_length,
    )
    positions = recipe.data.positions
    if positions is None:
        return mixture
    return WithSkippedPositions(
        mixture, positions.kind, positions.target, positions.chunks, recipe.data.seed
    )
