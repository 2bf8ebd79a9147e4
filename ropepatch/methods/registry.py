"""Methods by name: registering, looking up, and the functions that need no model."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ropepatch.errors import MethodError, MethodOptionError, UnknownMethodError
from ropepatch.methods.base import (
    MECHANISMS,
    AlibiGeometry,
    Method,
    RotaryFrequencies,
    RotaryGeometry,
    require_count,
)
from ropepatch.methods.replacement import Replacement, TableMethod
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
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.default is field.default_factory is dataclasses.MISSING
        if field.name not in options
    ]
    if missing:
        raise MethodOptionError(f"{cls.name!r} needs the option(s) {', '.join(missing)}")
    return cls(**options)


def methods_for(mechanism: str | None = None, *, replacing: bool | None = None) -> list[str]:
    """Registered names, of all methods or of those that serve one mechanism.

    `replacing` asks for those that put another encoding in its place (True) or scale it (False).
    """
    if mechanism is not None and mechanism not in MECHANISMS:
        raise MethodError(f"{mechanism!r} is no mechanism; mechanisms: {', '.join(MECHANISMS)}")
    return sorted(
        name
        for name, cls in _METHODS.items()
        if mechanism is None or mechanism in cls.mechanisms()
        if replacing is None or replacing == issubclass(cls, Replacement)
    )


def replaces(name: str) -> bool:
    """Whether a method puts another encoding in the place of the checkpoint's, rather than scale it."""
    return issubclass(method_class(name), Replacement)


def counts_tokens(name: str) -> bool:
    """Whether a method puts in what goes by distances in tokens, whatever positions a caller gives."""
    return replaces(name) and not issubclass(method_class(name), TableMethod)


def serving(mechanism: str) -> str:
    """What there is for a mechanism, as errors end with it."""
    rescale, replace = (", ".join(methods_for(mechanism, replacing=way)) for way in (False, True))
    return f"methods that rescale: {rescale}; methods that replace: {replace}"


def chosen_method(method: str | Method, options: dict[str, Any]) -> Method:
    """The method, by its name and options or as it is given."""
    if not isinstance(method, Method):
        return make_method(method, **options)
    if options:
        raise MethodOptionError(
            f"{method.name!r} is given as an instance; set {', '.join(options)} there"
        )
    return method


def _length(seq_len: int | None) -> Tensor | None:
    """The length of one sequence as methods take it. ()"""
    if seq_len is None:
        return None
    require_count("seq_len", seq_len, "tokens")
    return torch.tensor(seq_len)


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
    chosen = chosen_method(method, options)
    geometry = RotaryGeometry(
        dim=dim, base=base, original_max_position_embeddings=original_max_position_embeddings
    )
    frequencies = chosen.rotary(geometry, _length(seq_len))
    return RotaryFrequencies(frequencies.inv_freq, float(frequencies.attention_factor))


def alibi_slopes(
    num_heads: int,
    method: str | Method | None = None,
    *,
    original_max_position_embeddings: int | None = None,
    seq_len: int | None = None,
    **options: Any,
) -> Tensor:
    """ALiBi's slopes without a model, unscaled or by a method, float64. (num_heads,)

    `seq_len`, in tokens, and the trained length are read by length-dependent methods only.
    """
    if method is None and options:
        raise MethodOptionError(f"{', '.join(options)} given without a method; name the method too")
    chosen = make_method("linear") if method is None else chosen_method(method, options)
    trained = original_max_position_embeddings
    if trained is None:
        if chosen.length_dependent and "alibi" in chosen.mechanisms():
            raise MethodOptionError(
                f"{chosen.name!r} depends on the length; give original_max_position_embeddings, "
                "the tokens that the checkpoint was trained to"
            )
        trained = 1  # which no other method reads
    geometry = AlibiGeometry(num_heads=num_heads, original_max_position_embeddings=trained)
    return chosen.alibi(geometry, _length(seq_len))
