"""MPT's projections, which its config can clip."""

import torch
from tiny_bias_models import bias_model
from tiny_models import logits, token_ids

from ropepatch import patch_model


def test_projections_are_clipped_at_both_ends():
    ids = token_ids(2, 30)  # stock MPT reads no more than it was trained on
    model = bias_model("mpt")
    unclipped = logits(model, ids)
    for block in model.transformer.blocks:
        block.attn.clip_qkv = 0.3
    expected = logits(model, ids)
    assert (expected - unclipped).abs().max() > 0.1
    torch.testing.assert_close(logits(patch_model(model, "linear", 1), ids), expected)
