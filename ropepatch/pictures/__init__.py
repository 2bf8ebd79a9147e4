"""Portraits drawn with Matplotlib, which the extra `[eval]` brings."""

from ropepatch.pictures.figure import draw as draw
from ropepatch.pictures.figure import require_suffix as require_suffix
from ropepatch.pictures.figure import save as save
