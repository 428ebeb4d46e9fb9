"""Run a check written for host tensors on another device, with the same strides there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class _Copy(torch.autograd.Function):
    """A copy on a device, storage and strides included; its gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.device = tensor.device
        return _copied(tensor.detach(), device)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return _copied(slopes[0], ctx.device), None


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    whole = torch.tensor([], dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    made = whole.to(device, copy=True)
    return made.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def moved(op: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return `op` computing on the device: host tensors in, the same ones or new ones out, with gradients."""

    def run(*args: Any, **kwargs: Any) -> Any:
        pairs: list[tuple[Tensor, Tensor]] = []

        def there(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            pairs.append((value, _Copy.apply(value, device)))
            return pairs[-1][1]

        def back(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            for host, copy in pairs:
                if value is copy:  # written in place
                    return host.copy_(value)
            return _Copy.apply(value, torch.device("cpu"))

        args, kwargs = tree_map(there, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = device
        return tree_map(back, op(*args, **kwargs))

    return run


@contextlib.contextmanager
def computing_on(device: torch.device, *places: tuple[ModuleType, str]) -> Iterator[None]:
    """Let the operations of these names, in these test modules, compute on the device."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, moved(getattr(module, name), device))
        yield
