"""Fake CUDA tensors on a PyTorch without CUDA: indexing that works, and a guard against host tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")


_SAME = {Tensor.contiguous: torch.ops.aten.contiguous, Tensor.copy_: torch.ops.aten.copy_}


class Indexing(TorchFunctionMode):
    """Do `x[...]`, `x.contiguous()` and `x.copy_(y)` by the operations that they stand for.

    PyTorch's own ask for the CUDA driver first, which a CPU build has not. As there, a list of integers
    becomes a tensor on the host.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return taken(*args)
        if func is Tensor.__setitem__:
            tensor, index, value = args
            view, found = _basic(tensor, index)
            value = value if isinstance(value, Tensor) else torch.full((), value, device=tensor.device)
            if any(each is not None for each in found):
                torch.ops.aten.index_put_(view, found, value)
            else:
                torch.ops.aten.copy_(view, value)
            return None
        func = _SAME.get(func, func)
        return func(*args, **(kwargs or {}))


def taken(tensor: Tensor, index: Any) -> Tensor:
    """Return `tensor[index]`."""
    view, found = _basic(tensor, index)
    return torch.ops.aten.index(view, found) if any(each is not None for each in found) else view


def _basic(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Apply integers, slices, None and Ellipsis; return the view, and the tensors that index what is left."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(
        each.ndim if isinstance(each, Tensor) and each.dtype == torch.bool else 1
        for each in items
        if each is not None and each is not Ellipsis
    )
    whole = [slice(None)] * (tensor.ndim - used)
    place = next((n for n, each in enumerate(items) if each is Ellipsis), len(items))
    items[place : place + 1] = whole
    axis, found = 0, []
    for each in items:
        if each is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(each, slice):
            tensor = torch.ops.aten.slice(tensor, axis, each.start, each.stop, each.step or 1)
        elif isinstance(each, int):
            tensor = tensor.select(axis, each)
            continue
        else:
            found += [None] * (axis - len(found)) + [each if isinstance(each, Tensor) else torch.tensor(each)]
            axis += each.ndim - 1 if isinstance(each, Tensor) and each.dtype == torch.bool else 0
        axis += 1
    return tensor, found


class OnDevice(TorchDispatchMode):
    """Refuse every operation that takes or makes a tensor that is not on the GPU; list the others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, Tensor) and each.device != CUDA:
                raise AssertionError(f"{func} handles a tensor on {each.device} within the step")
        self.operations.append(str(func))
        return result
