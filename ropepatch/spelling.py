"""Suggestions for words that somebody misspelt."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str], *, quoted: bool = True) -> str:
    """`; did you mean 'x'?` for the closest known word, or nothing where none is close."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    if not close:
        return ""
    return f"; did you mean {close[0]!r}?" if quoted else f"; did you mean {close[0]}?"
