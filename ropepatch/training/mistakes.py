"""What is wrong with a recipe, in the words of its author."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic_core import ErrorDetails

from ropepatch.spelling import did_you_mean

_SHOWN = 5  #: unknown keys of a section that are told one by one
_UNKNOWN = "unexpected_keyword_argument"  #: in pydantic's words


def list_mistakes(lines: Sequence[str], name: str, count: int) -> str:
    """One message for `count` mistakes in what is called `name`."""
    if len(lines) == 1:
        return f"{name}: {lines[0]}"
    return "\n  - ".join([f"{name} has {count} mistakes:", *lines])


def unknown_keys(keys: Sequence[str], known: Sequence[str]) -> list[str]:
    """`unknown key a.b; did you mean c?` for a few, and one line for all others with what is known."""
    hints = {key: did_you_mean(key.rpartition(".")[2], known, quoted=False) for key in keys}
    close = [key for key in keys if hints[key]][:_SHOWN]
    lines = [f"unknown key {key}{hints[key]}" for key in close]
    others = sorted((key for key in keys if key not in close), key=lambda key: bool(hints[key]))
    if others:
        shown, more = ", ".join(others[:_SHOWN]), len(others) - _SHOWN
        shown += f" and {more} more" if more > 0 else ""
        word = "keys" if len(others) > 1 else "key"
        lines.append(f"unknown {word} {shown}; known: {', '.join(known)}")
    return lines


def explain_all(
    details: Sequence[ErrorDetails], schema: type, elsewhere: Mapping[str, str]
) -> list[str]:
    """What pydantic found in a tree that should fit the dataclass `schema`; unknown keys come last.

    `elsewhere` says of keys that would be unknown where they belong.
    """
    lines = [_explain(detail, schema) for detail in details if detail["type"] != _UNKNOWN]
    sections: dict[tuple[str, ...], list[str]] = {}
    for detail in details:
        if detail["type"] == _UNKNOWN:
            location = tuple(map(str, detail["loc"]))
            sections.setdefault(location[:-1], []).append(".".join(location))
    for section, keys in sections.items():
        moved = [key for key in keys if key in elsewhere]
        lines += [f"unknown key {key}; did you mean {elsewhere[key]}?" for key in moved]
        keys = [key for key in keys if key not in elsewhere]
        lines += unknown_keys(keys, _known_keys(schema, section))
    return lines


def _explain(detail: ErrorDetails, schema: type) -> str:
    """One error that is not about an unknown key."""
    location = tuple(str(part) for part in detail["loc"])
    at = ".".join(location) or "the recipe"
    found = f"found {detail['input']!r}"
    allowed = detail["msg"].removeprefix("Input should be ")
    match detail["type"]:
        case "missing":
            return f"{at} is missing"
        case "value_error":
            return f"{at}: {detail['msg'].removeprefix('Value error, ')}"
        case "literal_error":
            choices = [choice.strip("'") for choice in allowed.replace(" or ", ", ").split(", ")]
            hint = did_you_mean(detail["input"], choices, quoted=False)
            return f"{at} must be {allowed}; {found}{hint}"
        case "list_type":
            return f"{at} must be a list, such as [{detail['input']}]; {found}"
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
