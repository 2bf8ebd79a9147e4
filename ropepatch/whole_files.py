"""Text files that are never seen half written."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a full disk or a crash leaves the old file whole."""
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
