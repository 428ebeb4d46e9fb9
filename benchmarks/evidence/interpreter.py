"""Watch what kernels load and store in Triton's interpreter.

Every form of access that the interpreter has comes down to a masked load or a masked store, which are
counted; an atomic operation is neither and is refused. The interpreter takes the last axis of the grid
fastest, a GPU the first: programs are put into the GPU's order, since the cache depends on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.evidence.memory import SECTOR, Memory

_REACHES_MASKED = {
    "create_load",
    "create_store",
    "create_tensor_pointer_load",
    "create_tensor_pointer_store",
    "create_descriptor_load",
    "create_descriptor_store",
    "create_descriptor_gather",
    "create_descriptor_scatter",
}
_MOVES_NOTHING = {"create_gather", "create_make_tensor_descriptor"}
_MASKED = {"create_masked_load", "create_masked_store"}
_SIGNS = ("load", "store", "atomic", "descriptor", "copy", "gather", "scatter", "tma")


class Layout:
    """Where the tensors of a launch lie, one after another, in the `Memory` that is counted."""

    def __init__(self, arguments: Any):
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in _tensors(arguments)}
        starts = sorted(start for start, storage in storages.items() if storage.nbytes())
        self.starts = np.array([start // SECTOR * SECTOR for start in starts], dtype=np.int64)
        ends = [start + storages[start].nbytes() for start in starts]
        sizes = [
            -(-end // SECTOR) * SECTOR - int(first) for end, first in zip(ends, self.starts, strict=True)
        ]
        self.ends = np.array(ends, dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def size(self) -> int:
        """Bytes of memory in all."""
        return int(self.offsets[-1])

    def places(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turn addresses into places in that memory.

        Raises:
            IndexError: for an address outside every argument.
        """
        which = np.searchsorted(self.starts, addresses, side="right") - 1
        if which.size and (which.min() < 0 or bool((addresses >= self.ends[which]).any())):
            raise IndexError("the kernel touches memory that belongs to none of its arguments")
        return addresses - self.starts[which] + self.offsets[which]


@contextlib.contextmanager
def watching(open_memory: Callable[[str, int], Memory]) -> Iterator[None]:
    """Count every launch within the block.

    Args:
        open_memory: called with a kernel's name and its bytes of memory before each launch; returns where to
            count its accesses.

    Raises:
        RuntimeError: if Triton does not interpret, or has a form of access that is not known here; within
            the block, for an atomic operation.
    """
    from triton import knobs
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:
        raise RuntimeError("accesses are counted in Triton's interpreter: set TRITON_INTERPRET=1 first")
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    forms = {name for name in dir(builder) if name.startswith("create_")}
    atomics = {name for name in forms if "atomic" in name}
    accesses = {name for name in forms if any(sign in name for sign in _SIGNS)}
    unknown = accesses - _REACHES_MASKED - _MOVES_NOTHING - _MASKED - atomics
    if unknown:
        raise RuntimeError(f"this Triton's interpreter has accesses that are not counted: {sorted(unknown)}")
    load, store = builder.create_masked_load, builder.create_masked_store
    place, call = builder.set_grid_idx, executor.__call__
    current: list[tuple[Memory, Layout]] = []

    def count(pointers: Any, mask: Any, is_store: bool) -> None:
        memory, layout = current[-1]
        width = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        memory.access(layout.places(addresses.astype(np.int64).reshape(-1)), width, is_store)

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        count(pointers, mask, False)
        return load(self, pointers, mask, *rest, **named)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        count(pointers, mask, True)
        return store(self, pointers, value, mask, *rest, **named)

    def first_axis_fastest(self: Any, x: int, y: int, z: int) -> None:
        across, down, deep = self.grid_dim
        number = (x * down + y) * deep + z
        place(self, number % across, number // across % down, number // (across * down))

    def refused(self: Any, *rest: Any, **named: Any) -> Any:
        raise RuntimeError("atomic operations are not counted, and their order is not deterministic")

    def launched(self: Any, *arguments: Any, **named: Any) -> Any:
        layout = Layout((arguments, named))
        current.append((open_memory(self.fn.__name__, layout.size), layout))
        try:
            return call(self, *arguments, **named)
        finally:
            current.pop()

    wrapped = {
        (builder, "create_masked_load"): counted_load,
        (builder, "create_masked_store"): counted_store,
        (builder, "set_grid_idx"): first_axis_fastest,
        (executor, "__call__"): launched,
        **{(builder, name): refused for name in atomics},
    }
    kept = {(owner, name): getattr(owner, name) for owner, name in wrapped}
    try:
        for (owner, name), function in wrapped.items():
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name), function in kept.items():
            setattr(owner, name, function)


def _tensors(arguments: Any) -> Iterator[Tensor]:
    if isinstance(arguments, torch.Tensor):
        yield arguments
    elif isinstance(arguments, dict):
        yield from _tensors(tuple(arguments.values()))
    elif isinstance(arguments, (tuple, list)):
        for each in arguments:
            yield from _tensors(each)
    elif hasattr(arguments, "base") and isinstance(arguments.base, torch.Tensor):
        yield arguments.base
