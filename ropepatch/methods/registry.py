"""Methods by name: registering, looking up, and the functions that need no model."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ropepatch.errors import MethodError, MethodOptionError, UnknownMethodError
from ropepatch.methods.base import MECHANISMS, Method, RotaryFrequencies, RotaryGeometry
from ropepatch.spelling import did_you_mean

MethodClass = TypeVar("MethodClass", bound=type[Method])

_METHODS: dict[str, type[Method]] = {}
_ALIASES: dict[str, str] = {}


def _home(method_class: type[Method]) -> str:
    return f"{method_class.__module__}.{method_class.__qualname__}"


def register_method(
    name: str, *, aliases: tuple[str, ...] = ()
) -> Callable[[MethodClass], MethodClass]:
    """Class decorator that makes a Method available by `name`.

    Raises MethodError when a name is taken by another class or the class is not a frozen Method.
    """

    def register(method_class: MethodClass) -> MethodClass:
        if not (isinstance(method_class, type) and issubclass(method_class, Method)):
            raise MethodError(f"{method_class!r} is not a subclass of ropepatch.Method")
        for taken in (name, *aliases):
            owner = _METHODS.get(_ALIASES.get(taken, taken))
            # A module that is reloaded, or a notebook cell that is run again, may replace its own
            # class.
            if owner is not None and _home(owner) != _home(method_class):
                raise MethodError(f"the method name {taken!r} is taken by {_home(owner)}")
        method_class.name = name
        _METHODS[name] = method_class
        _ALIASES.update(dict.fromkeys(aliases, name))
        return method_class

    return register


def method_class(name: str) -> type[Method]:
    """The class registered under a name or alias. Raises UnknownMethodError with a did-you-mean."""
    found = _METHODS.get(_ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        hint = did_you_mean(name, [*_METHODS, *_ALIASES])
        raise UnknownMethodError(
            f"there is no method {name!r}{hint}; methods: {', '.join(sorted(_METHODS))}"
        )
    return found


def aliases_of(name: str) -> list[str]:
    """Other names under which a method is found."""
    return sorted(alias for alias, target in _ALIASES.items() if target == name)


def make_method(name: str, **options: Any) -> Method:
    """The method `name` with its options, validated.

    Raises UnknownMethodError for the name, MethodOptionError for an option.
    """
    cls = method_class(name)
    known = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in known:
            raise MethodOptionError(
                f"{cls.name!r} has no option {option!r}{did_you_mean(option, known)}; options: "
                f"{', '.join(known)}"
            )
    try:
        return cls(**options)
    except TypeError as error:
        required = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        missing = [option for option in required if option not in options]
        if not missing:
            raise
        raise MethodOptionError(f"{cls.name!r} needs the option(s) {', '.join(missing)}") from error


def methods_for(mechanism: str | None = None) -> list[str]:
    """Registered names, of all methods or of those that serve one mechanism."""
    if mechanism is not None and mechanism not in MECHANISMS:
        raise MethodError(f"{mechanism!r} is no mechanism; mechanisms: {', '.join(MECHANISMS)}")
    return sorted(
        name for name, cls in _METHODS.items() if mechanism is None or mechanism in cls.mechanisms()
    )


def rotary_frequencies(
    method: str | Method,
    *,
    dim: int,
    base: float = 10000.0,
    original_max_position_embeddings: int,
    seq_len: int | None = None,
    **options: Any,
) -> RotaryFrequencies:
    """Scaled frequencies without a model: `.inv_freq` float64 (dim/2,), `.attention_factor` float.

    `seq_len` is the length of the sequence in tokens, which only length-dependent methods read.
    """
    if isinstance(method, Method) and options:
        raise MethodOptionError(f"{method.name!r} is given as an instance; set its options there")
    chosen = method if isinstance(method, Method) else make_method(method, **options)
    geometry = RotaryGeometry(
        dim=dim, base=base, original_max_position_embeddings=original_max_position_embeddings
    )
    if seq_len is not None and (type(seq_len) is not int or seq_len < 1):
        raise MethodOptionError(f"seq_len is {seq_len!r}; allowed: a whole number of tokens, >= 1")
    length = None if seq_len is None else torch.tensor(seq_len)
    frequencies = chosen.rotary(geometry, length)
    return RotaryFrequencies(frequencies.inv_freq, float(frequencies.attention_factor))
