"""A tokenizer for the tiny models, made here and not downloaded."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def tiny_tokenizer(model_max_length: int = 32) -> PreTrainedTokenizerFast:
    """Ninety-six single words; `model_max_length` as a checkpoint trained to 32 tokens has it."""
    vocabulary = {f"w{index}": index for index in range(96)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")),
        model_max_length=model_max_length,
        pad_token="w0",
        bos_token="w1",
        eos_token="w2",
    )
