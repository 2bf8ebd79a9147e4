"""Loss of single tokens, in nats: from one forward pass, with the head in chunks.

Tokens are named by their index in the window: token t is predicted from t tokens of context, and
column t − 1 of a loss array holds it. Encoder–decoder models read the tokens before the scored ones in
the encoder, and predict the scored ones in the decoder: the context of a token is the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropepatch.errors import DataError
from ropepatch.evals.windows import Windows

#: Large enough to fill the cores, small enough that activations stay in the cache.
TOKENS_PER_BATCH = 4096
#: That exist at a time on a CPU: 8 MiB in float32. For more, the C library asks the system for new
#: pages every time, which takes longer than to compute what is on them.
LOGITS_PER_CHUNK = 1 << 21
_ON_ACCELERATORS = 32  #: times as many, as they need more at once to be fast
_LEAST_TOKENS = 32  #: of a chunk, so that the head's weights are not read for a few tokens only
#: Mean difference in nats up to which a pass over a prefix counts as the same.
_ONE_PASS_TOLERANCE = 1e-3

#: Tokens at which attention costs as much as the rest of a small model; only progress uses it.
_QUADRATIC_FROM = 2048

Tick = Callable[[int, int], None]  #: told (sequences, length) after each batch


def no_tick(sequences: int, length: int) -> None:
    """For callers that show no progress."""


def work(sequences: int, length: int) -> float:
    """What a batch costs: by tokens and their square."""
    return sequences * length * (1 + length / _QUADRATIC_FROM)


def share_ticker(total: float, progress: Callable[[float], None]) -> Tick:
    """Turns finished batches into the share of `total`, the work of them all."""
    done = 0.0

    def tick(sequences: int, length: int) -> None:
        nonlocal done
        done += work(sequences, length)
        progress(min(1.0, done / total) if total else 1.0)

    return tick


def check_vocabulary(model: PreTrainedModel, input_ids: Tensor) -> None:
    """Raise DataError for tokens that the model does not know."""
    rows = int(model.config.get_text_config().vocab_size)
    if (largest := int(input_ids.max())) >= rows:
        raise DataError(
            f"the tokenizer gives token {largest}, but the model knows {rows} tokens; load the "
            "tokenizer that was saved with this model"
        )


def plain_head(model: PreTrainedModel) -> nn.Module | None:
    """The module that alone turns the decoder's states into logits, or None if there is none.

    Found by trying: some models cap or scale logits after it, and then whole logits are needed.
    """
    # Its scored tokens are few, and the decoder runs on no others.
    if model.config.is_encoder_decoder:
        return None
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is None or decoder is model or head is None:
        return None
    probe = torch.arange(8, device=model.device)[None]
    with torch.no_grad():
        states = decoder(input_ids=probe, use_cache=False).last_hidden_state
        same = torch.equal(head(states), model(input_ids=probe, use_cache=False).logits)
    return head if same else None


def token_losses(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    keep: int | None = None,
    head: nn.Module | None,
    read_last: bool = True,
) -> Tensor:
    """Float32 losses of the last `keep` tokens (all but the first if None), (batch, keep).

    `head` is what plain_head found; with it, logits exist for one chunk of tokens at a time. The last
    token predicts nothing, but a causal model reads it, as with `model(labels=…)`, if `read_last`.
    """
    input_ids = input_ids.to(model.device)
    length = input_ids.shape[1]
    keep = length - 1 if keep is None else keep
    labels = input_ids[:, -keep:].reshape(-1)
    read = input_ids if read_last else input_ids[:, :-1]
    chunk = _tokens_per_chunk(model)
    if head is None:
        logits = _target_logits(model, read, input_ids, keep).flatten(0, 1)
        parts: Iterator[Tensor] = iter(logits.split(chunk))
    else:
        states = model.get_decoder()(input_ids=read, use_cache=False).last_hidden_state
        states = states[:, length - keep - 1 : length - 1].flatten(0, 1)
        parts = (head(some) for some in states.split(chunk))
    losses = [
        F.cross_entropy(logits.float(), some, reduction="none")
        for logits, some in zip(parts, labels.split(chunk), strict=True)
    ]
    return torch.cat(losses).view(len(input_ids), keep).cpu()


def _tokens_per_chunk(model: PreTrainedModel) -> int:
    """Tokens whose logits exist at a time."""
    logits = LOGITS_PER_CHUNK * (1 if model.device.type == "cpu" else _ON_ACCELERATORS)
    return max(_LEAST_TOKENS, logits // int(model.config.get_text_config().vocab_size))


def _target_logits(model: PreTrainedModel, read: Tensor, input_ids: Tensor, keep: int) -> Tensor:
    """Logits that predict the last `keep` tokens, (batch, keep, vocabulary)."""
    if model.config.is_encoder_decoder:
        prefix, targets = input_ids[:, :-keep], input_ids[:, -keep:].contiguous()
        # The model shifts the labels itself, to make of them what the decoder reads.
        logits: Tensor = model(input_ids=prefix, labels=targets, use_cache=False).logits
        return logits
    logits = model(input_ids=read, use_cache=False).logits
    last = input_ids.shape[1] - 1
    return logits[:, last - keep : last]


def batched_losses(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    keep: int | None = None,
    head: nn.Module | None,
    tick: Tick = no_tick,
    out: Tensor | None = None,
) -> Tensor:
    """token_losses of many sequences (sequences, keep), a few at a time.

    `out` takes them, and what is done there already is not done again: rows are NaN until they are.
    A loss that is not a number is infinite.
    """
    length = input_ids.shape[1]
    keep = length - 1 if keep is None else keep
    out = torch.full((len(input_ids), keep), math.nan) if out is None else out
    per_batch = max(1, TOKENS_PER_BATCH // length)
    for batch, rows in zip(input_ids.split(per_batch), out.split(per_batch), strict=True):
        # Whole batches whatever is done: the last bits of a loss depend on its neighbours.
        if rows.isnan().any():
            # Not inference_mode: a module that caches what it computes may be trained afterwards.
            with torch.no_grad():
                losses = token_losses(model, batch, keep=keep, head=head)
            rows.copy_(losses.nan_to_num(nan=math.inf, posinf=math.inf))
            tick(len(batch), length)
    return out


def bin_edges(lengths: Sequence[int]) -> tuple[int, ...]:
    """Edges of the position bins: the lengths, and powers of two from 16 below the shortest."""
    below = [2**power for power in range(4, 32) if 2**power < min(lengths)]
    return (1, *below, *sorted(lengths))


def run_ends(
    model: PreTrainedModel, edges: Sequence[int], targets: int, *, one_pass: bool
) -> tuple[int, ...]:
    """Where the runs end that score every token once; the first number is where scoring starts.

    A decoder beside an encoder is trained to predict a few tokens, so it is never asked for more than
    `targets` at a time.
    """
    if one_pass:
        return (edges[0], edges[-1])
    if not model.config.is_encoder_decoder:
        return tuple(edges)
    return (edges[0], *reversed(range(edges[-1], edges[0], -targets)))


def one_pass_is_exact(
    model: PreTrainedModel, windows: Windows, longest: int, *, head: nn.Module | None
) -> bool:
    """Whether tokens of a prefix have the same loss when more tokens follow it.

    It fails for methods that change their frequencies with the sequence's length, and where an encoder
    reads all tokens before the scored ones.
    """
    if model.config.is_encoder_decoder:
        return False
    window = windows.prefix(longest)[:1]
    with torch.no_grad():
        whole = token_losses(model, window, head=head)
    return prefix_is_exact(model, window[:, : longest // 2], whole, head=head)


def prefix_is_exact(
    model: PreTrainedModel, prefix: Tensor, whole: Tensor, *, head: nn.Module | None
) -> bool:
    """Whether a prefix (1, tokens) has alone the losses that it has in the `whole` (1, more tokens)."""
    with torch.no_grad():
        alone = token_losses(model, prefix, head=head)
    return float((whole[:, : alone.shape[1]] - alone).abs().mean()) < _ONE_PASS_TOLERANCE


def position_losses(
    model: PreTrainedModel,
    windows: Windows,
    ends: Sequence[int],
    *,
    head: nn.Module | None,
    tick: Tick = no_tick,
    out: Tensor | None = None,
) -> Tensor:
    """Loss of every token of every window, (windows, longest − 1), from runs that end at `ends`."""
    out = torch.full((len(windows.input_ids), ends[-1] - 1), math.nan) if out is None else out
    for start, end in pairwise(ends):
        part = out[:, start - 1 : end - 1]
        prefix = windows.prefix(end)
        batched_losses(model, prefix, keep=end - start, head=head, tick=tick, out=part)
    return out
