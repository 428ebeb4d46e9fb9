"""How much memory and arithmetic a function takes, found by walking it on meta tensors, which hold nothing.

A tensor counts from the operation that makes it until the last view of it is gone; inputs and weights do not.
"""

import ctypes
import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD


@dataclass(frozen=True)
class Held:
    """A tensor that is alive at the peak: its size in bytes, its shape and the operation that made it."""

    bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    operation: str


@dataclass(frozen=True)
class Usage:
    """What a function takes."""

    peak_bytes: int  #: the most that the tensors made inside hold at once, what it returns included
    flop: int  #: multiplications and additions of convolutions, matrix products, attention, feature layers
    operation: str  #: the one that reached the peak
    held: tuple[Held, ...]  #: the tensors alive then, largest first
    result_bytes: int  #: what is still alive at the end


def measure(function: Callable[[], Any]) -> Usage:
    """Call a function whose tensors are on the meta device, without gradients, and measure it.

    Scratch inside an operation is seen only as `_scratch` knows it; attention keeps no matrix of weights.
    """
    walk = _Walk()
    with torch.no_grad(), _FlatAttention(walk), walk:
        result = function()
    walk.finished = True
    held = tuple(sorted(walk.held_at_peak, key=lambda held: -held.bytes))
    usage = Usage(walk.peak, walk.flop, walk.operation, held, walk.live)
    del result
    return usage


def return_freed_memory() -> bool:
    """Let this process give back what is freed of 1 MiB or more, so a peak is exact; say if it could be.

    The C library of Linux keeps freed blocks of up to 32 MB, by and by 0.1 to 0.2 GB of them.
    """
    return _mallopt((_MMAP_THRESHOLD, 2**20), (_TRIM_THRESHOLD, 2**20))


def keep_freed_memory() -> bool:
    """Let this process keep all that it frees, for a program of one's own; return whether it could be set.

    The C library of Linux maps every block above 32 MB anew, so each activation of a large volume costs its
    page faults: 12% of a step of the paper's model at 32×64×64.
    """
    return _mallopt((_MMAP_THRESHOLD, 2**31 - 1), (_TRIM_THRESHOLD, -1))


def _mallopt(*settings: tuple[int, int]) -> bool:
    """Set parameters of the C library's allocator, where it has them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(parameter, value) for parameter, value in settings])


class _Walk(TorchDispatchMode):
    """Follows the storages that operations make, and adds up their arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flop = 0
        self.operation = ""
        self.finished = False
        self.held: dict[int, Held] = {}
        self.held_at_peak: list[Held] = []
        self._followed: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and not leaf.is_sparse
        }
        result = func(*args, **(kwargs or {}))
        self.flop += _flop(func, args, kwargs or {}, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before:
                self.follow(leaf, str(func))
        self.note(str(func), _scratch(func, args))
        return result

    def follow(self, tensor: Tensor, operation: str) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._followed:
            return
        held = Held(storage.nbytes(), tuple(tensor.shape), tensor.dtype, operation)
        self.held[key] = held
        self.live += held.bytes
        self._followed[key] = weakref.ref(storage, functools.partial(self._forget, key))

    def note(self, operation: str, scratch: int = 0) -> None:
        """Remember this moment if more is held than ever before."""
        if self.live + scratch > self.peak:
            self.peak, self.operation = self.live + scratch, operation
            self.held_at_peak = list(self.held.values())

    def _forget(self, key: int, _: Any) -> None:
        if not self.finished:
            self.live -= self.held.pop(key).bytes
            del self._followed[key]


class _FlatAttention(TorchFunctionMode):
    """Attention as kernels do it, its matrix of weights never whole; on meta tensors PyTorch makes it."""

    def __init__(self, walk: _Walk):
        super().__init__()
        self.walk = walk

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or args[0].device.type != "meta":
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        self.walk.flop += 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _flop(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Floating-point operations of one call, a multiplication and an addition counted as two."""
    if func.namespace == "scorefusion":
        if func._opname not in ("ensemble_features", "ensemble_features_"):
            return 0
        features, weight = args[1:3]
        return int(2 * features.numel() * weight.shape[0])
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def _scratch(func: Any, args: Any) -> int:
    """Bytes that an operation takes and gives back inside itself: 3D pooling makes its input contiguous."""
    if func.overloadpacket is torch.ops.aten.avg_pool3d and not args[0].is_contiguous():
        return math.prod(args[0].shape) * args[0].element_size()
    return 0
