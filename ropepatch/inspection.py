"""`ropepatch inspect`: how a checkpoint or a method encodes positions, as text and as a picture."""

import argparse
from functools import partial

from ropepatch.arguments import parse_options
from ropepatch.description import describe
from ropepatch.errors import ConfigError, LengthError
from ropepatch.extras import require_extra
from ropepatch.methods import Method
from ropepatch.methods.registry import method_class
from ropepatch.model_portraits import model_portraits
from ropepatch.patch import resolve_method
from ropepatch.portrait_tables import print_portrait
from ropepatch.portraits import Portrait, Sizes, portrait, portrait_class

_SIZES = {"dim": "--dim", "base": "--base", "num_heads": "--heads"}


def run_inspection(options: argparse.Namespace) -> None:
    """Print it, and draw it where asked to. Mistakes are told before anything is loaded."""
    if options.plot is not None:
        _require_drawable(options)
    portraits = [_method_portrait(options)] if options.model is None else _inspect_model(options)
    for each in portraits:
        print_portrait(each)
    if options.plot is not None:
        from ropepatch.pictures import draw, save

        if not portraits:
            raise ConfigError("there is nothing to draw, as the model has no positions")
        save(draw(portraits), options.plot)
        print(f"\n{options.plot}")


def _require_drawable(options: argparse.Namespace) -> None:
    """Raise MissingExtraError without matplotlib, ConfigError for a file that it does not write."""
    require_extra("eval", "--plot")
    from ropepatch.pictures import require_suffix

    require_suffix(options.plot)


def _method_for(options: argparse.Namespace, length: int) -> Method:
    return resolve_method(
        options.method, options.factor, options.target_length, length, parse_options(options.set)
    )


def _method_portrait(options: argparse.Namespace) -> Portrait:
    """What a method makes of sizes that the user gave. Raises ConfigError for those it does not read."""
    if options.method is None:
        raise ConfigError("there is nothing to show; give a MODEL, or --method and its options")
    given = {
        "dim": options.dim,
        "base": options.base,
        "num_heads": options.heads,
        "original_max_position_embeddings": options.original_max_position_embeddings,
    }
    sizes = Sizes(**{name: value for name, value in given.items() if value is not None})
    method = _method_for(options, sizes.original_max_position_embeddings)
    reads = portrait_class(method).reads
    for name, option in _SIZES.items():
        if given[name] is not None and name not in reads:
            allowed = ", ".join(_SIZES[read] for read in reads)
            raise ConfigError(
                f"{option} does not apply to {method.name!r}; of the sizes: {allowed}"
            )
    return portrait(method, sizes)


def _inspect_model(options: argparse.Namespace) -> list[Portrait]:
    """Print what the model is; its portraits."""
    for option in _SIZES.values():
        if getattr(options, option.strip("-")) is not None:
            raise ConfigError(
                f"{option} is for --method without a MODEL, which has its own; leave it out"
            )
    if options.method is not None:
        method_class(options.method)  # raises for a wrong name, before weights are read
    elif options.factor or options.target_length or options.set:
        raise ConfigError("--factor, --target-length and --set are a method's; add --method")

    from ropepatch.checkpoint.opening import open_model
    from ropepatch.terminal import print_rows, silence_transformers

    silence_transformers()
    model = open_model(options.model)
    print_rows(describe(model))
    method_for = None if options.method is None else partial(_method_for, options)
    try:
        return model_portraits(model, method_for, options.original_max_position_embeddings)
    except (ConfigError, LengthError):
        if options.method is None and options.plot is None:
            return []  # the trained length is not known, and what does not need it has been said
        raise
