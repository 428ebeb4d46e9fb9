"""Times of kernels: medians over independent groups of replays, on random data that no cache holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks.step_walk import Call, Spec

from .device import Device

GROUPS = 3
"""Number of groups of replays; a figure is their median, its spread the greatest minus the least."""

ROTATION = 4
"""How many times the last level of cache the buffers of a case are, which its copies take in turn."""

COPIES = 512
"""The most copies; of a case so small that they do not suffice the figure says ``cold: false``."""

Figure = dict[str, Any]


def figure(values: Sequence[float], unit: str) -> Figure:
    """Return independent measurements of one number, in the form of the JSON file."""
    return {
        "median": statistics.median(values),
        "spread": max(values) - min(values),
        "unit": unit,
        "groups": list(values),
    }


def scaled(found: Mapping[str, Any], unit: str, convert: Callable[[float], float]) -> Figure:
    """Return a figure in another unit, such as bytes per second."""
    return figure([convert(value) for value in found["groups"]], unit)


def measure(
    device: Device, bodies: Sequence[Callable[[], Any]], *, groups: int = GROUPS, seconds: float = 0.01
) -> Figure:
    """Time bodies that do the same to different buffers; return seconds for one.

    Args:
        device: where they run.
        bodies: captured together, one after another, as one graph, if they can be.
        groups: of replays.
        seconds: that a group lasts at least, if one replay does not last longer.
    """
    replay, captured = device.graph(lambda: [body() for body in bodies])
    once = max(device.seconds(replay, 1), 1e-7)
    times = int(min(1000, max(1, math.ceil(seconds / once))))
    values = []
    for _ in range(max(2, groups)):
        device.synchronize()
        values.append(device.seconds(replay, times) / len(bodies))
    return {**figure(values, "s"), "graph": captured}


class Buffers:
    """Random tensors that are views of one allocation for each dtype, taken in turn.

    Args:
        device: where.
    """

    def __init__(self, device: Device):
        self.device = device
        self._flat: dict[torch.dtype, Tensor] = {}
        self._place: dict[torch.dtype, int] = {}
        # A generator of its own: the default one is out of use after a capture that was refused.
        self._generator = torch.Generator(device.place).manual_seed(0)

    def take(self, spec: Spec) -> Tensor:
        """Return a tensor of that shape, stride and dtype: normal numbers, zeros if it holds integers."""
        storage = 1 + sum((n - 1) * stride for n, stride in zip(spec.shape, spec.stride, strict=True))
        storage = 0 if 0 in spec.shape else storage
        if not spec.dtype.is_floating_point:
            return torch.zeros(storage, dtype=spec.dtype, device=self.device.place).as_strided(
                spec.shape, spec.stride
            )
        flat, place = self._flat.get(spec.dtype), self._place.get(spec.dtype, 0)
        length = (
            ROTATION * self.device.l2 // spec.dtype.itemsize + 8 * storage
        )  # a call's tensors do not overlap
        if flat is None or flat.numel() < length:
            flat, place = self._random(length).to(spec.dtype), 0
            self._flat[spec.dtype] = flat
        if place + storage > flat.numel():
            place = 0
        step = max(1, 256 // spec.dtype.itemsize)
        self._place[spec.dtype] = -(-(place + storage) // step) * step
        return flat.as_strided(spec.shape, spec.stride, place)

    def _random(self, length: int) -> Tensor:
        return torch.randn(length, device=self.device.place, generator=self._generator)

    def arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call's arguments with tensors in place of specs, on the device."""
        given = (call.args, dict(call.kwargs))
        args, kwargs = tree_map_only(Spec, self.take, given)
        return tree_map_only(torch.device, lambda _: self.device.place, (args, kwargs))

    def free(self) -> None:
        """Give all memory back."""
        self._flat.clear()
        self._place.clear()


def copies_of(device: Device, bytes_moved: int) -> tuple[int, bool]:
    """Return how many copies of a case to time in turn, and whether all of them exceed the cache."""
    needed = math.ceil(ROTATION * device.l2 / max(bytes_moved, 1))
    return min(max(needed, 1), COPIES), needed <= COPIES


def poison(device: Device, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Leave NaN in memory that the next allocation of that size is likely to be given."""
    if dtype.is_floating_point:
        torch.full(tuple(shape), math.nan, dtype=dtype, device=device.place)
