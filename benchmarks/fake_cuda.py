"""Fake CUDA tensors on a PyTorch without CUDA: an engine's step on them, indexing, guards and launches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.plan import plan
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import channels_last
from scorefusion.models.score_fusion import ScoreFusion

CUDA = torch.device("cuda:0")


class EngineStep(nn.Module):
    """An engine's step, whose model's parameters `functional_call` replaces."""

    def __init__(self, model: ScoreFusion):
        super().__init__()
        self.model = model

    def forward(self, engine: Engine) -> None:
        for segment in engine.segments(engine.plan.cycle[0]):
            segment.run()


class FakeEngine:
    """An engine on fake CUDA tensors, conditions loaded.

    Args:
        config: of the model.
        size: (z, y, x) of the volume.
        dtype: of the networks.
        device: of all tensors.
        options: of :func:`scorefusion.engine.planning.plan.plan`.
    """

    def __init__(
        self,
        config: ModelConfig,
        size: Sequence[int],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device = CUDA,
        **options: Any,
    ):
        mode = FakeTensorMode(allow_non_fake_inputs=False)
        with torch.device("meta"):
            model = ScoreFusion(config).eval()
        model.slice_networks.to(dtype)
        if model.fusion is not None:
            model.fusion.to(dtype)
        step = EngineStep(channels_last(model))
        self.placed: dict[str, Tensor] = {
            key: FakeTensor(mode, value.detach(), device)
            for key, value in [*step.named_parameters(), *step.named_buffers()]
        }
        self.step, self.mode = step, mode
        with self.active():
            self.engine = Engine(model, plan(config, size, dtype=dtype, **options), device=device)
            batch, conditions = self.engine.plan.batch, len(config.conditions)
            self.engine.load(torch.empty(batch, conditions, *size, device=device))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let PyTorch compute on fake tensors."""
        with self.mode, torch.no_grad(), Indexing():
            yield

    def run(self, watch: TorchDispatchMode) -> None:
        """Walk one step under a mode, which sees each operation."""
        with self.active(), watch:
            torch.func.functional_call(self.step, self.placed, (self.engine,))


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

    def __init__(self, device: torch.device = CUDA) -> None:
        super().__init__()
        self.device = device
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, Tensor) and each.device != self.device:
                raise AssertionError(f"{func} handles a tensor on {each.device} within the step")
        self.operations.append(str(func))
        return result


class Implementations(TorchDispatchMode):
    """Run this project's operations as on a device, up to the launches of their kernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "scorefusion":
            return func(*args, **(kwargs or {}))
        with Indexing():
            return implementation(func)(*args, **(kwargs or {}))


def implementation(func: Any) -> Any:
    """Return what one of this project's operations runs on real tensors."""
    return OPDEFS[func._schema.name]._init_fn


class Runtime:
    """Stands in for the CUDA runtime, which has a current device, and for Triton's launcher, which uses it.

    Args:
        current: index of the thread's current device.

    Attributes:
        launches: of each kernel, its name, the current device when it was launched, and its tensors' devices.
    """

    def __init__(self, current: int = 0):
        self.current = current
        self.launches: list[tuple[str, int, set[torch.device]]] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let PyTorch's device guards and Triton's `kernel[grid]` use this runtime."""
        from triton.runtime.jit import KernelInterface

        runtime = self

        def launcher(kernel: Any, grid: Any) -> Any:
            def launch(*arguments: Any, **keywords: Any) -> None:
                tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
                devices = {tensor.device for tensor in tensors}
                runtime.launches.append((kernel.__name__, runtime.current, devices))

            return launch

        def exchange(index: int) -> int:
            previous, runtime.current = runtime.current, runtime.current if index < 0 else index
            return previous

        with (
            mock.patch.multiple(
                torch.cuda,
                _exchange_device=exchange,
                _maybe_exchange_device=exchange,
                current_device=lambda: runtime.current,
                get_device_capability=lambda device=None: (9, 0),
            ),
            mock.patch.object(KernelInterface, "__getitem__", launcher),
        ):
            yield
