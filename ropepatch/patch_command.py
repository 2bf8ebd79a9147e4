"""`ropepatch patch`: save a patched copy of a checkpoint."""

import argparse
from pathlib import Path

from ropepatch import patch_info, patch_model, save_pretrained, verify
from ropepatch.arguments import parse_options
from ropepatch.checkpoint.opening import open_model, open_tokenizer
from ropepatch.errors import ConfigError
from ropepatch.terminal import silence_transformers


def run(options: argparse.Namespace) -> None:
    """Patch, verify, save. Raises ConfigError where the copy would replace the checkpoint itself."""
    method_options = parse_options(options.set)
    _refuse_to_replace(options.model, options.directory)
    silence_transformers()
    model = open_model(options.model)
    tokenizer = open_tokenizer(options.model)
    if options.fit is not None:
        from ropepatch.corpus import load_documents
        from ropepatch.corpus.fitting import fitting_text
        from ropepatch.description import length_to_fit, require_length

        length = require_length(
            model, options.original_max_position_embeddings or length_to_fit(model)
        )
        text = fitting_text(load_documents(options.fit, "train"), tokenizer, length)
        method_options |= {"fit": "profile", "text": text}
    patch_model(
        model,
        options.method,
        options.factor,
        target_length=options.target_length,
        original_max_position_embeddings=options.original_max_position_embeddings,
        part=options.part,
        replace=options.replace,
        **method_options,
    )
    verify(model)
    info = patch_info(model)
    assert info is not None
    save_pretrained(model, options.directory, tokenizer)
    what = info.method if info.part in (None, "both") else f"{info.method} ({info.part})"
    print(
        f"{what} ×{info.factor:g}: {info.original_max_position_embeddings} → "
        f"{info.max_position_embeddings} tokens, {len(info.sites)} module(s): {options.directory}"
    )
    for note in info.notes:
        print(note)


def _refuse_to_replace(source: str, target: Path) -> None:
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise ConfigError(
            f"OUT is {source} itself, which would be replaced by its patched copy; name another directory"
        )
