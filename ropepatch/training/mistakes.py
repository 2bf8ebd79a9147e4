"""What is wrong with a recipe, in the words of its author."""

import dataclasses
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic_core import ErrorDetails

from ropepatch.spelling import did_you_mean


def list_mistakes(mistakes: Sequence[str], name: str) -> str:
    """One message for all mistakes in what is called `name`."""
    if len(mistakes) == 1:
        return f"{name}: {mistakes[0]}"
    return "\n  - ".join([f"{name} has {len(mistakes)} mistakes:", *mistakes])


def unknown_key(key: str, known: Sequence[str]) -> str:
    """`unknown key a.b; did you mean c?`, or all that is known where nothing is close."""
    hint = did_you_mean(key.rpartition(".")[2], known, quoted=False)
    return f"unknown key {key}{hint or '; known: ' + ', '.join(known)}"


def explain(detail: ErrorDetails, schema: type) -> str:
    """One pydantic error about a tree that should fit the dataclass `schema`."""
    location = tuple(str(part) for part in detail["loc"])
    at = ".".join(location) or "the recipe"
    found = f"found {detail['input']!r}"
    allowed = detail["msg"].removeprefix("Input should be ")
    match detail["type"]:
        case "unexpected_keyword_argument":
            return unknown_key(at, _known_keys(schema, location[:-1]))
        case "missing":
            return f"{at} is missing"
        case "value_error":
            return f"{at}: {detail['msg'].removeprefix('Value error, ')}"
        case "literal_error":
            choices = [choice.strip("'") for choice in allowed.replace(" or ", ", ").split(", ")]
            hint = did_you_mean(detail["input"], choices, quoted=False)
            return f"{at} must be {allowed}; {found}{hint}"
        case "dataclass_type":
            keys = ", ".join(_known_keys(schema, location))
            return f"{at} must be a section with some of the keys {keys}; {found}"
    return f"{at} must be {allowed}; {found}"


def _known_keys(schema: type, location: Sequence[str]) -> list[str]:
    """Keys of the section at a location of the schema."""
    section: Any = schema
    for part in location:
        if not part.isdigit():  # which is a place in a list of sections
            section = _dataclass_in(get_type_hints(section)[part])
    return [field.name for field in dataclasses.fields(section)]


def _dataclass_in(annotation: Any) -> Any:
    if get_origin(annotation) in (UnionType, Union, list):
        return next(arm for arm in get_args(annotation) if dataclasses.is_dataclass(arm))
    return annotation
