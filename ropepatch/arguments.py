"""What argparse alone does not read of a command line."""

import argparse
from collections.abc import Sequence
from typing import Any

from ropepatch.errors import ConfigError


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options; argparse leaves the `intermixed` arguments out that stand behind an option."""
    options, rest = parser.parse_known_args(arguments)
    if "intermixed" in options and not any(text.startswith("-") for text in rest):
        getattr(options, options.intermixed).extend(rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`["beta_fast=16"]` → `{"beta_fast": 16}`; values are YAML."""
    import yaml

    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set takes OPTION=VALUE; found {text!r}")
        if key == "factor":
            raise ConfigError(f"--set takes options of the method; give --factor {value}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {value!r} is not a YAML value") from None
    return options
