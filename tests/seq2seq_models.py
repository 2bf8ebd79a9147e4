"""A tiny randomly initialised encoder–decoder model."""

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, T5Config


def seq2seq_model(*, vocab_size: int = 96) -> PreTrainedModel:
    """A T5 in evaluation mode; its relative biases are large, so that positions matter."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        n_positions=32,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            parameter.data.normal_()
    return model
