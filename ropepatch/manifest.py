"""A patch as plain JSON: what goes into a saved config and into the sidecar of an adapter."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ropepatch.errors import SidecarError, UnknownMethodError
from ropepatch.methods import Method, make_method

CONFIG_KEY = "ropepatch"  #: the config attribute that holds a manifest
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything needed to make the same patch again."""

    method: str | None  #: registry name; None says that nothing was patched
    mechanism: str = "rotary"
    options: dict[str, Any] = field(default_factory=dict)  #: every option, `factor` included
    original_max_position_embeddings: int = 0  #: tokens that the checkpoint was trained to
    max_position_embeddings: int = 0  #: tokens that the patched model is for
    layer_types: list[str] | None = None  #: the layer types scaled; None: the model has one
    part: str | None = None  #: what was scaled of an encoder–decoder model
    #: the config attributes before the patch
    unpatched: dict[str, Any] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """Target length over trained length."""
        return float(self.options["factor"])

    @classmethod
    def of(cls, method: Method, original_length: int, **rest: Any) -> Self:
        """The manifest of a method on a checkpoint of that length; tuples become lists, as JSON has them."""
        options = {"factor": method.factor, **method.options()}
        plain = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in options.items()
        }
        return cls(
            method=method.name,
            options=plain,
            original_max_position_embeddings=original_length,
            max_position_embeddings=round(method.factor * original_length),
            **rest,
        )

    def same_patch(self, other: "Manifest") -> bool:
        """Whether both scale alike, whatever the configs were before."""
        return {**asdict(self), "unpatched": None} == {**asdict(other), "unpatched": None}

    def make(self) -> Method:
        """The method with its options. Raises MethodError for what this version does not know."""
        if self.method is None:
            raise SidecarError("the manifest says that nothing was patched")
        try:
            return make_method(self.method, **self.options)
        except UnknownMethodError as error:
            raise UnknownMethodError(
                f"this was saved with {self.method!r}, which is no method of ropepatch's own; import the "
                f"module that registers it first ({error})"
            ) from error

    def summary(self) -> str:
        """In a message: "yarn, factor 4, from 256 tokens", and the part if it is not all."""
        if self.method is None:
            return "no patch"
        length = self.original_max_position_embeddings
        part = "" if self.part in (None, "both") else f", {self.part} only"
        return f"{self.method}, factor {self.options['factor']:g}, from {length} tokens{part}"

    def to_json(self) -> dict[str, Any]:
        """With a version and a digest that tells edits."""
        content = {"version": _VERSION, **asdict(self)}
        return {**content, "digest": digest(content)}

    @classmethod
    def in_config(cls, config: object, where: str = "the config") -> Self | None:
        """The manifest that a config holds, or None. Raises SidecarError when it was edited."""
        content = getattr(config, CONFIG_KEY, None)
        return None if content is None else cls.from_json(content, where)

    @classmethod
    def from_json(cls, content: object, where: str) -> Self:
        """Check and read. Raises SidecarError that names `where` the content came from."""
        if not isinstance(content, dict) or "version" not in content:
            raise SidecarError(f"{where} is no ropepatch manifest; save the model again")
        if content["version"] != _VERSION:
            raise SidecarError(
                f"{where} has manifest version {content['version']!r}, this ropepatch reads "
                f"{_VERSION}; use the version that wrote it"
            )
        rest = {key: value for key, value in content.items() if key != "digest"}
        if content.get("digest") != digest(rest):
            raise SidecarError(
                f"{where} was edited or damaged after ropepatch wrote it; save the model again "
                "with the patch that you want"
            )
        del rest["version"]
        return cls(**rest)


@dataclass(frozen=True, kw_only=True)
class PatchInfo(Manifest):
    """What is patched into a model."""

    method: str
    sites: tuple[str, ...] = ()  #: paths of the modules that were replaced
    notes: tuple[str, ...] = ()  #: where the patched model is right and stock is not


def digest(content: dict[str, Any]) -> str:
    """A short fingerprint of JSON content, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
