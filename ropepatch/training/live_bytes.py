"""How many bytes of tensors are alive while code runs that computes nothing.

Parameters are fake tensors: they have a shape and a type, and no memory. So has all that is made of them;
what autograd keeps for the backward pass, and when it lets go of it, is as in earnest. Tensors made of
none of them (positions, masks) are computed where they are small, since code looks at their values.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Literal["weights", "gradients", "optimizer", "activations", "logits", "square"]

Kinds = tuple[Kind, ...]
Count = dict[Kind, int]  #: bytes

KINDS: Kinds = get_args(Kind)
OF_TOKENS: Kinds = ("activations", "logits", "square")  #: of which a longer sequence has more
_COMPUTED = 1 << 24  #: bytes of the largest result that is computed


class LiveBytes(TorchDispatchMode):
    """Counts, within its body, what is made and not yet freed, and keeps the count of a peak."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocab_size = vocab_size  #: tensors of so many channels are logits
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.alive: Count = dict.fromkeys(KINDS, 0)
        self.watch(0)
        # What each storage is forgotten by, if it was freed or counts as something else.
        self._counted: weakref.WeakKeyDictionary[UntypedStorage, Callable[[], object]] = (
            weakref.WeakKeyDictionary()
        )

    def watch(self, length: int, kinds: Kinds = KINDS) -> None:
        """Look from now on for the moment with most of these kinds.

        What has a multiple of length² elements is square; with a prime length, nothing else has.
        """
        self.length = length
        self.kinds = kinds
        self.peak = dict(self.alive)

    def make_parameters_fake(self, model: nn.Module) -> None:
        """Put fake parameters in the place of the model's, and count them and their gradients."""
        fakes: dict[Tensor, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter not in fakes:
                    fakes[parameter] = self._fake_parameter(parameter)
                if parameter is not None:
                    module._parameters[name] = fakes[parameter]

    def _fake_parameter(self, parameter: nn.Parameter) -> nn.Parameter:
        with self.fake:
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            fake = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        self.count([fake], "weights")
        if fake.requires_grad:
            fake.register_post_accumulate_grad_hook(self._count_gradient)
        return fake

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.count([parameter.grad], "gradients")

    def count(self, tensors: Iterable[object], kind: Kind) -> None:
        """Count these tensors as `kind`, until they are freed."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage in self._counted:
                self._counted[storage]()
            size = storage.nbytes()
            self.alive[kind] += size
            self._counted[storage] = weakref.finalize(storage, self._forget, kind, size)

    def _forget(self, kind: Kind, size: int) -> None:
        self.alive[kind] -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tree_leaves((args, kwargs))
        result = self._run(func, inputs, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._counted:
                if kwargs.get("pin_memory"):
                    self._counted[tensor.untyped_storage()] = _nothing  # it is the host's
                else:
                    self.count([tensor], self._kind(tensor))
        if self._watched(self.alive) > self._watched(self.peak):
            self.peak = dict(self.alive)
        return result

    def _kind(self, tensor: Tensor) -> Kind:
        if tensor.shape[-1:] == (self.vocab_size,):
            return "logits"
        is_square = self.length > 1 and tensor.numel() % self.length**2 == 0
        return "square" if is_square else "activations"

    def _watched(self, count: Count) -> int:
        return sum(count[kind] for kind in self.kinds)

    def _run(
        self, func: Callable[..., Any], inputs: list[Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        if any(isinstance(each, FakeTensor) for each in inputs):
            return func(*args, **kwargs)
        try:
            with self.fake:
                outline = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return func(*args, **kwargs)
        made = [each for each in tree_leaves(outline) if isinstance(each, Tensor)]
        if kwargs.get("pin_memory") or any(each.nbytes > _COMPUTED for each in made):
            return outline
        return func(*args, **kwargs)


def _nothing() -> None:
    pass
