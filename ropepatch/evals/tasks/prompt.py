"""One question with its context, as tokens."""

import hashlib
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A question at the end of its context; `length` is len(input_ids) + max_new_tokens exactly."""

    task: str
    number: int  #: prompt i of a task and length is the same for every model and every count
    length: int  #: tokens, with those that the answer may take
    input_ids: Tensor  #: (length − max_new_tokens,)
    references: tuple[str, ...]  #: what the answer must contain
    answer: Tensor  #: (answer tokens,) the right continuation of input_ids
    candidates: tuple[Tensor, ...]  #: equally long answers, the right one first; () where none are
    depth: float | None  #: of the (first) needle in its haystack, 0 start … 1 end
    distance: int | None  #: tokens from the end of the needle to the end of the prompt
    max_new_tokens: int  #: 0 where the answer is one token, which no model has to read
    chance: float  #: of forced choice; 0 where there are no candidates
    without: Tensor | None  #: input_ids with filler in the needle's place, equally long

    @property
    def digest(self) -> str:
        """Equal for two prompts of the same tokens."""
        return digest([self])


def digest(prompts: list[Prompt]) -> str:
    """Equal for two lists of the same tokens."""
    content = b"".join(prompt.input_ids.numpy().tobytes() for prompt in prompts)
    return hashlib.sha256(content).hexdigest()[:16]
