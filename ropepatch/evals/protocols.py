"""What "perplexity at a length" can mean: which windows are read, what of them is scored and averaged.

At least four quantities go by that name. They differ by more than most methods do, so each has a
name here, follows one program to the arithmetic, and is never compared with another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ropepatch.errors import ConfigError
from ropepatch.spelling import did_you_mean


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `end` (exclusive) of a text, of which the last `scored` are scored."""

    start: int
    end: int
    scored: int
    prefixed: bool = False  #: whether the start token is put before them

    @property
    def size(self) -> int:
        """Its tokens, with the start token."""
        return self.end - self.start + self.prefixed


#: (tokens of a text, tokens of a window, whether there is a start token, stride) → windows, none if
#: the text is too short.
Cut = Callable[[int, int, bool, int], list[Window]]


def cut_prefix(tokens: int, length: int, prefixed: bool, stride: int) -> list[Window]:
    """The text's beginning, all of it scored."""
    room = length - prefixed
    return [] if tokens < room else [_cut(0, room, room, prefixed)]


def cut_sliding(tokens: int, length: int, prefixed: bool, stride: int) -> list[Window]:
    """A window every `stride` tokens up to the first that reaches the end; each token is scored once."""
    room = length - prefixed
    if tokens < room:
        return []
    ends = [min(start + room, tokens) for start in range(0, tokens - room + stride, stride)]
    return [
        _cut(number * stride, end, end - before, prefixed)
        for number, (before, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def cut_overlapping(tokens: int, length: int, prefixed: bool, stride: int) -> list[Window]:
    """A window every `stride` tokens, all of each scored again, without the last one."""
    starts = range(0, tokens - length, stride)[:-1]
    return [_cut(start, start + length, length, prefixed) for start in starts]


def cut_disjoint(tokens: int, length: int, prefixed: bool, stride: int) -> list[Window]:
    """Blocks of `length` tokens, each after one token that is read only; the last is filled up to the left.

    The last token of a window is predicted and not read, so that `length` tokens are read.
    """
    if tokens < length:
        return []
    blocks = [(first, min(first + length, tokens)) for first in range(length, tokens, length)]
    return [
        Window(0, length, length, prefixed=True),
        *(Window(end - length - 1, end, end - first) for first, end in blocks),
    ]


def _cut(start: int, end: int, new: int, prefixed: bool) -> Window:
    """A window whose first token has no context unless a start token stands before it."""
    return Window(start, end, min(new, end - start - (not prefixed)), prefixed)


@dataclass(frozen=True, kw_only=True)
class PerplexityProtocol:
    """One meaning of perplexity at a length."""

    name: str
    cut: Cut
    unit: Literal["window", "token"]  #: what counts the same in the mean
    prefix: Literal["bos", "bos or eos"] | None  #: the start token
    stride: int | None = None  #: tokens between windows, where the length does not decide it
    reads_last: bool = True  #: whether the model reads the last token, which predicts nothing
    joined: bool = False  #: whether windows cross borders, in a row of all documents
    base: float = math.e  #: perplexity is this to the power of the loss

    @property
    def nested(self) -> bool:
        """Whether the window of a length starts with those of all shorter lengths."""
        return self.cut is cut_prefix


_PRESETS = (
    # jquesnelle/yarn, eval/perplexity.py --truncate: the paper's curves over length. The stride that
    # it is given has no effect: one window of the first L tokens, BOS included. Mean of documents.
    PerplexityProtocol(name="yarn-truncate", cut=cut_prefix, unit="window", prefix="bos"),
    # The same file without --truncate. BOS starts every window. The mean of window means: the first
    # window's L − 1 tokens and the last one's few weigh as much as 256 in between.
    PerplexityProtocol(
        name="yarn-sliding", cut=cut_sliding, unit="window", prefix="bos", stride=256
    ),
    # dvlab-research/LongLoRA, eval.py (ChunkLlama's ppl/test_ppl.py alike): full windows of one stream
    # of tokens. `range(0, tokens − L, 256)` leaves out a window that ends with the stream, `pop` the
    # last one; all L − 1 tokens of each are scored, early ones, too, and 2.71828 stands for e.
    PerplexityProtocol(
        name="longlora",
        cut=cut_overlapping,
        unit="window",
        prefix=None,
        stride=256,
        joined=True,
        base=2.71828,
    ),
    # EleutherAI/lm-evaluation-harness, lm_eval/utils.py: get_rolling_token_windows with context_len=1,
    # then make_disjoint_window. "Non-overlapping" in ALiBi (arXiv 2108.12409). The text starts after
    # BOS, or EOS where there is none.
    PerplexityProtocol(
        name="disjoint", cut=cut_disjoint, unit="token", prefix="bos or eos", reads_last=False
    ),
    # Press et al. (arXiv 2012.15832, fairseq's --context-window = L − S): the windows of yarn-sliding,
    # but a mean of tokens.
    PerplexityProtocol(name="last-s", cut=cut_sliding, unit="token", prefix="bos", stride=256),
)
PROTOCOLS: dict[str, PerplexityProtocol] = {preset.name: preset for preset in _PRESETS}


def perplexity_protocol(name: str, stride: int | None = None) -> PerplexityProtocol:
    """A preset, with another stride where one is given. Raises ConfigError for what there is not."""
    if name not in PROTOCOLS:
        raise ConfigError(
            f"no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}"
            f"{did_you_mean(name, PROTOCOLS)}"
        )
    preset = PROTOCOLS[name]
    if stride is None:
        return preset
    if preset.stride is None:
        raise ConfigError(f"protocol {name!r} has no stride to choose; leave stride={stride} out")
    if stride < 1:
        raise ConfigError(f"stride={stride} must be at least 1 token")
    return replace(preset, stride=stride)


def check_lengths(protocol: PerplexityProtocol, lengths: Sequence[int]) -> None:
    """Raise ConfigError for lengths that the protocol cannot cut windows of."""
    if not lengths or tuple(sorted(set(lengths))) != tuple(lengths) or lengths[0] < 2:
        raise ConfigError(f"lengths={tuple(lengths)} must be distinct, ascending and at least 2")
    if protocol.cut is cut_sliding and (protocol.stride or 0) >= lengths[0]:
        raise ConfigError(
            f"windows of {lengths[0]} tokens at a stride of {protocol.stride} leave tokens between them "
            f"out; use a stride below {lengths[0]} (--stride), or longer windows (--lengths)"
        )
