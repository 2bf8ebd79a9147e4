"""ALiBi as more channels of queries and keys, so that every fused causal kernel computes it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from ropepatch.attention.call import Call
from ropepatch.attention.toeplitz import CHANNELS, MASKED, widened

_STEP = 256  # positions are kept as multiples of 256 and a rest, both exact in bfloat16


def folded_attention(call: Call, slopes: Tensor) -> Tensor:
    """softmax(q·k·scale − m·D)·v by plain attention over wider heads. → (batch, query, heads, channels)

    −m·D = m·n_k − m·n_q, a sum of products of what the query and what the key knows. `slopes` m
    (1 or batch, heads), float32.
    """
    query, key, scale = call.query, call.key, call.scale
    rows, heads, queries, channels = query.shape
    keys = key.shape[2]
    positions = torch.arange(keys, device=key.device, dtype=torch.float32)
    m = slopes[..., None].expand(rows, heads, queries) / scale
    high = m.to(query.dtype).float()  # a slope is two numbers of the query's precision
    # The query's own part is the same for all keys, so it only keeps scores small and may be rounded.
    own = -m * positions[keys - queries :] / _STEP
    low = positions % _STEP
    padding = torch.zeros(1, 1, keys, device=key.device)
    if call.key_mask is not None:
        padding = padding.masked_fill(~call.key_mask[:, None], MASKED)
    lower_right = call.causal and 1 < queries < keys
    out: Tensor = F.scaled_dot_product_attention(
        widened(query, high, high, m - high, m - high, own, torch.ones_like(m) / scale),
        widened(key, positions - low, low, positions - low, low, 0 * low + _STEP, padding),
        F.pad(call.value, (0, CHANNELS)),  # as wide as the rest, or the kernel would not take it
        attn_mask=causal_lower_right(queries, keys) if lower_right else None,
        is_causal=call.causal and queries == keys,
        dropout_p=call.dropout,
        scale=scale,
    )
    return out[..., :channels].transpose(1, 2)
