"""Tiny models with a vision tower, which has positions of its own that no patch may touch."""

import transformers
from tiny_models import tiny_config

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def llava() -> transformers.PreTrainedModel:
    """Llama under a Pixtral tower, which holds `inv_freq`, too."""
    config = transformers.LlavaConfig(
        text_config=tiny_config("llama").to_dict(),
        vision_config=transformers.PixtralVisionConfig(**VISION).to_dict(),
        image_token_index=95,
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3() -> transformers.PreTrainedModel:
    """Gemma 3 whole, with its learned positions in the tower."""
    config = transformers.Gemma3Config(
        text_config=tiny_config("gemma3_text").to_dict(),
        vision_config=VISION,
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)
