"""What this machine reached a moment ago: bytes copied a second, FLOP a second of layers.

Each is the best of several runs within half a second, measured when first asked for. A dtype whose first
small run shows that it has no chance (a CPU without bfloat16 instructions is hundreds of times slower in it)
is measured by that run alone.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

SECONDS = 0.5
COPY, PRODUCT, CONVOLUTION = "copying", "matrix product", "convolution"


@functools.cache
def ceiling(kind: str, device: str, dtype: torch.dtype) -> float:
    """Return bytes or FLOP a second.

    Args:
        kind: COPY, PRODUCT or CONVOLUTION.
        device: where.
        dtype: of what is multiplied; copying is measured in float32 alone.
    """
    with torch.no_grad():
        if kind == COPY:
            source = torch.ones(copy_bytes(device) // 4, device=device)
            target = torch.empty_like(source)
            return 2 * 4 * source.numel() / _best(lambda: target.copy_(source), device)
        measure = _product if kind == PRODUCT else _convolution
        if device != "cpu":
            return measure(device, dtype, False)
        small = measure(device, dtype, True)
        floor = ceiling(kind, device, torch.float32) / 10 if dtype != torch.float32 else 0.0
        return small if small < floor else max(small, measure(device, dtype, False))


def best_convolution(dtypes: Iterable[torch.dtype], device: str = "cpu") -> float:
    """Return FLOP a second of the fastest convolution there, of any dtype given, either layout."""
    best = 0.0
    with torch.no_grad():
        for dtype, channels, last in itertools.product(dtypes, (64, 256), (False, True)):
            best = max(best, _convolution(device, dtype, False, channels=channels, last=last))
    return best


def copy_bytes(device: str) -> int:
    """Return the bytes of a buffer that no cache holds: a CPU's last level four times, at least 128 MiB."""
    if device != "cpu":
        return 1 << 30
    largest = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        largest = max(largest, int(text.rstrip("KM")) << (20 if text.endswith("M") else 10))
    return min(max(4 * largest, 128 << 20), 1 << 30)


def _product(device: str, dtype: torch.dtype, small: bool) -> float:
    side = 128 if small else 1024 if device == "cpu" else 8192
    square = torch.rand((side, side), device=device).to(dtype)
    return 2 * side**3 / _best(lambda: square @ square, device)


def _convolution(
    device: str, dtype: torch.dtype, small: bool, *, channels: int = 64, last: bool = True
) -> float:
    """The better of a 2D and a 3D one, 3 voxels wide, as many channels out as in, channels last or first."""
    side = 8 if small else 32 if channels <= 64 else 16
    side *= 1 if small or device == "cpu" else 4
    slices = torch.rand((4, channels, 2 * side, 2 * side), device=device).to(dtype)
    volume = torch.rand((1, channels, side, side, side), device=device).to(dtype)
    rates = []
    for run, given, memory in (
        (F.conv2d, slices, torch.channels_last),
        (F.conv3d, volume, torch.channels_last_3d),
    ):
        memory = memory if last else torch.contiguous_format
        given = given.contiguous(memory_format=memory)
        extent = (3,) * (given.ndim - 2)
        weight = torch.rand((channels, channels, *extent), device=device).to(dtype)
        weight = weight.contiguous(memory_format=memory)
        flop = 2 * channels * weight[0].numel() * given[0, 0].numel() * given.shape[0]
        seconds = _best(lambda: run(given, weight, padding=1), device)  # noqa: B023
        rates.append(flop / seconds)
    return max(rates)


def _best(run: Callable[[], object], device: str) -> float:
    """Return the shortest time of a run, after one to warm up."""
    start, best, times = time.perf_counter(), float("inf"), 0
    while times < 2 or (time.perf_counter() - start < SECONDS and times < 50):
        before = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best, times = min(best, time.perf_counter() - before), times + 1
    return best
