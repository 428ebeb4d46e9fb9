"""CUDA graphs on a CPU: what stands in for the device when a captured step is tested where there is no GPU.

As on a GPU, capturing computes nothing: a `Tape` records every operation with the memory it was given, and
what it wrote is put back. Replaying runs the recorded operations, on the recorded memory, and no Python of
the step. So a number that the step took from the host stays what it was, an address that has changed since
is still the old one, and an output that nothing computes is NaN.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

WAITS = {
    "aten::_local_scalar_dense": "reads a tensor's number on the host",
    "aten::equal": "compares tensors on the host",
    "aten::allclose": "compares tensors on the host",
    "aten::nonzero": "makes a size that depends on values",
    "aten::masked_select": "makes a size that depends on values",
    "aten::_unique2": "makes a size that depends on values",
    "aten::bincount": "makes a size that depends on values",
    "aten::repeat_interleave": "makes a size that depends on values",
    "aten::lift_fresh": "makes a tensor from numbers on the host",
}
COPIES = {Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Refused(RuntimeError):
    """The step did what cannot be captured."""


class OnHost(TorchFunctionMode):
    """Refuse what copies a tensor to the host. Tensors are there already, so PyTorch itself does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPIES or (
            func is Tensor.to and "cpu" in [each for each in args if isinstance(each, str)]
        ):
            raise Refused(f"{func.__name__} copies a tensor to the host")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Records operations and replays them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._given: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._refuse(func, args)
        for written in _written(func, args, kwargs):
            place = _place(written)
            if place not in self._made and place not in self._before:
                whole = _whole(written)
                self._before[place] = (whole, whole.clone())
        aliases = tree_map_only(Tensor, _alias, (args, kwargs))
        known = {_place(each) for each in tree_leaves(aliases) if isinstance(each, Tensor)}
        result = func(*args, **kwargs)
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        for each in outputs:
            if _place(each) not in known:
                self._made[_place(each)] = _whole(each)
            if _place(each) in self._made:
                self._given.append((str(func), torch._C._WeakTensorRef(each)))
        self.operations.append((func, *aliases, [_alias(each) for each in outputs]))
        return result

    def finish(self) -> None:
        """Put back what was written, and find what outlives the capture.

        Raises:
            Refused: if a tensor that was made within it is still held.
        """
        for whole, value in self._before.values():
            whole.copy_(value)
        for whole in self._made.values():
            whole.fill_(float("nan") if whole.is_floating_point() else 0)
        gc.collect()
        held = [name for name, reference in self._given if not reference.expired()]
        if held:
            raise Refused(f"a tensor that {held[0]} made within the capture is still held after it")

    def replay(self) -> None:
        """Run what was recorded."""
        with _disable_current_modes(), torch.no_grad():
            for func, args, kwargs, outputs in self.operations:
                result = [each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, Tensor)]
                for output, value in zip(outputs, result, strict=True):
                    if _place(output) != _place(value):
                        output.copy_(value)

    def _refuse(self, func: Any, args: Any) -> None:
        name = func._schema.name
        if name in WAITS:
            raise Refused(f"{name} {WAITS[name]}")
        if name in ("aten::index", "aten::index_put_", "aten::index_put"):
            if any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]):
                raise Refused(f"{name} by a mask makes a size that depends on values")


class TapeGraphs:
    """`engine.graph.CudaGraphs` on a CPU; captures with an operation whose name contains `refuse` fail."""

    def __init__(self, refuse: str | None = None) -> None:
        self.refuse = refuse
        self.tapes: list[Tape] = []
        self.pools: list[object] = []
        self.warmed = self.waited = self.replayed = 0
        self.attempts: list[object] = []

    def pool(self) -> object:
        self.pools.append(object())
        return self.pools[-1]

    def aside(self, body: Callable[[], object]) -> None:
        self.warmed += 1
        body()

    def capture(self, body: Callable[[], object], pool: object) -> Callable[[], None]:
        assert pool in self.pools
        self.attempts.append(pool)
        tape = Tape()
        try:
            with OnHost(), tape:
                body()
        finally:
            tape.finish()
        names = [str(func) for func, *_ in tape.operations]
        if self.refuse is not None and any(self.refuse in name for name in names):
            raise Refused(f"operation not permitted when stream is capturing: {self.refuse}")
        self.tapes.append(tape)

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay

    def synchronize(self) -> None:
        self.waited += 1


class Still(TorchDispatchMode):
    """Nothing but replays: any operation that is run from Python is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was run beside the replay")


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation writes."""
    found = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [each for each in tree_leaves(value) if isinstance(each, Tensor)]
    return found


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor over the same memory, which stays there when a parameter's is replaced."""
    return tensor.detach()


def _whole(tensor: Tensor) -> Tensor:
    """All the memory that a tensor is in."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
