"""The only code that mutates a model.

What was done is kept as data on the model itself: references to the objects that were changed and
the values before and after. deepcopy and pickle carry it along with the objects, so a copy is
undone without touching the original.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

RECORD = "_ropepatch_record"


class Absent(Enum):
    """Stands for an attribute that an object does not have of its own. Survives pickle and deepcopy."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


class Change(Protocol):
    """One reversible step."""

    target: Any  #: the object that is changed

    def apply(self) -> None:
        """Make the change."""

    def revert(self) -> None:
        """Put back what was there."""

    def is_live(self) -> bool:
        """Whether what was changed is still as the change left it."""


def _own_attribute(target: object, attribute: str) -> Any:
    """The attribute that `target` itself holds (submodules included), else ABSENT."""
    for held in ("_modules", "_buffers"):
        if isinstance(target, nn.Module) and attribute in vars(target)[held]:
            return vars(target)[held][attribute]
    return vars(target).get(attribute, ABSENT)


def _made_for(module: nn.Module) -> tuple[object, ...] | None:
    """What tells a module with parameters of the patch from others; None for modules without."""
    made_for = type(module), getattr(module, "method", None), getattr(module, "geometry", None)
    return None if None in made_for else made_for


@dataclass
class AttributeChange:
    """An attribute of a module or config gets another value."""

    target: Any
    attribute: str
    after: Any
    before: Any = ABSENT
    _taken_out: nn.Module | None = (
        None  #: by `revert`: trained since it was put in, wrapped or copied
    )

    def apply(self) -> None:
        self.before = _own_attribute(self.target, self.attribute)
        # A dict is copied, so that an edit of it in place can be told from what was put there.
        after = copy.deepcopy(self.after) if isinstance(self.after, dict) else self.after
        setattr(self.target, self.attribute, self._taken_out or after)

    def revert(self) -> None:
        live = _own_attribute(self.target, self.attribute)
        if isinstance(self.after, nn.Module):
            self._taken_out = live if isinstance(live, nn.Module) else None
        if isinstance(live, Tensor):  # a buffer, and the model may have moved meanwhile
            self.before = self.before.to(live.device)
        if self.before is not ABSENT:
            setattr(self.target, self.attribute, self.before)
        elif live is not ABSENT:
            delattr(self.target, self.attribute)

    def is_live(self) -> bool:
        live = _own_attribute(self.target, self.attribute)
        if isinstance(live, nn.Module):
            return self.module() is not None
        if isinstance(live, Tensor):
            return torch.equal(live.cpu(), self.after.cpu())
        return live is self.after or bool(live == self.after)

    def module(self) -> nn.Module | None:
        """The module that was put in, or its copy: PEFT wraps what it trains, and a merge leaves a copy."""
        live = _own_attribute(self.target, self.attribute)
        found = list(live.modules()) if isinstance(live, nn.Module) else []
        if self.after in found:
            return cast(nn.Module, self.after)
        made_for = _made_for(self.after)
        return next((each for each in found if made_for and _made_for(each) == made_for), None)


@dataclass
class HookChange:
    """A hook is called before every forward of a module, and after it with one argument more."""

    target: nn.Module
    hook: Callable[..., Any]  #: may change the arguments on the way in; returns None on the way out

    def apply(self) -> None:
        self.target.register_forward_pre_hook(self.hook, with_kwargs=True)
        self.target.register_forward_hook(self.hook, with_kwargs=True, always_call=True)

    def revert(self) -> None:
        # By identity and not by handle: a handle does not follow the module through deepcopy.
        module = self.target
        for key in self._keys(module._forward_pre_hooks):
            del module._forward_pre_hooks[key]
            del module._forward_pre_hooks_with_kwargs[key]
        for key in self._keys(module._forward_hooks):
            del module._forward_hooks[key]
            del module._forward_hooks_with_kwargs[key]
            del module._forward_hooks_always_called[key]

    def is_live(self) -> bool:
        return all(map(self._keys, (self.target._forward_pre_hooks, self.target._forward_hooks)))

    def _keys(self, hooks: Mapping[int, Callable[..., Any]]) -> list[int]:
        return [key for key, hook in hooks.items() if hook is self.hook]


@dataclass
class UnusedParameters:
    """Parameters of a module that nothing reads any more do not train: data parallelism waits for all."""

    target: nn.Module
    before: tuple[bool, ...] = ()

    def apply(self) -> None:
        self.before = tuple(each.requires_grad for each in self.target.parameters())
        self.target.requires_grad_(False)

    def revert(self) -> None:
        for parameter, trained in zip(self.target.parameters(), self.before, strict=True):
            parameter.requires_grad_(trained)

    def is_live(self) -> bool:
        return True  # it does no harm to unfreeze them


@dataclass
class PatchRecord:
    """All changes of one patch, in the order in which they were made, and what they were made for."""

    changes: Sequence[Change]
    about: Any = None

    def apply(self, model: nn.Module) -> None:
        """Make all changes and leave the record on `model`, or change nothing and re-raise."""
        done: list[Change] = []
        try:
            for change in self.changes:
                change.apply()
                done.append(change)
        except BaseException:
            for change in reversed(done):
                change.revert()
            raise
        setattr(model, RECORD, self)

    @contextmanager
    def suspended(self, model: nn.Module) -> Iterator[None]:
        """Within the body, the model is as before the patch; then again as it was."""
        attributes = [each for each in self.changes if isinstance(each, AttributeChange)]
        lives = [_own_attribute(each.target, each.attribute) for each in attributes]
        self.revert(model)
        try:
            yield
        finally:
            self.apply(model)
            for change, live in zip(attributes, lives, strict=True):
                setattr(change.target, change.attribute, live)

    def revert(self, model: nn.Module) -> None:
        """Undo all changes, last first, and take the record off `model`."""
        for change in reversed(self.changes):
            change.revert()
        delattr(model, RECORD)


def find_record(model: nn.Module) -> tuple[nn.Module, PatchRecord] | None:
    """The submodule that carries a patch and its record, through wrappers such as PEFT's and DDP's."""
    for module in model.modules():
        record = vars(module).get(RECORD)
        if isinstance(record, PatchRecord):
            return module, record
    return None
