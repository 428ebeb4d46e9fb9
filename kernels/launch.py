"""How every kernel is launched, so that what is launched can also be recorded for a GPU that is not here.

A launcher calls `launch(kernel, grid, *arguments, config=..., **constants)`. On a GPU, or in Triton's
interpreter, that launches. Inside `recording(architecture)` it launches nothing: it keeps the call, whose
arguments may be tensors on the meta device, and `benchmarks.evidence` compiles it for that architecture.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

ARCHITECTURES = (80, 90, 100, 120)
"""Ampere, Hopper and the two Blackwells: what kernels are configured and compiled for."""


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: tile sizes, warps, pipeline stages, and why it is on the list."""

    name: str
    why: str
    constants: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2
    architectures: tuple[int, ...] = ARCHITECTURES


@dataclass(frozen=True)
class Launch:
    """A recorded call of a kernel: positional arguments, then constexprs and options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    config: Config


@dataclass
class _Recording:
    architecture: int
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[_Recording | None] = ContextVar("scorefusion_recording", default=None)


@contextlib.contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Record launches as they would be on that architecture (80, 90, 100, 120), instead of running them."""
    current = _Recording(architecture)
    token = _recording.set(current)
    try:
        yield current.launches
    finally:
        _recording.reset(token)


def architecture(device: torch.device) -> int:
    """Return the newest of ARCHITECTURES that the device is at least; 80 off CUDA, as in the interpreter."""
    current = _recording.get()
    if current is not None:
        return current.architecture
    if device.type != "cuda":
        return ARCHITECTURES[0]
    major, minor = torch.cuda.get_device_capability(device)
    return max((known for known in ARCHITECTURES if known <= 10 * major + minor), default=ARCHITECTURES[0])


def view(tensor: torch.Tensor | None) -> tuple[torch.Tensor, tuple[int, ...]] | None:
    """Return a tensor as kernels take it: with its strides; None stays None."""
    return None if tensor is None else (tensor, tensor.stride())


def interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, config: Config, **constants: Any) -> None:
    """Launch a Triton kernel on the device of its output, its first argument, or record the call.

    Nothing is launched if an axis of the grid is zero. `constants` are constexprs that the data decides, and
    options such as `enable_fp_fusion`.
    """
    if 0 in grid:
        return
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    keywords = {**constants, **config.constants, **options}
    current = _recording.get()
    if current is not None:
        current.launches.append(Launch(kernel, grid, arguments, keywords, config))
        return
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the thread's device; no-op off CUDA
        kernel[grid](*arguments, **keywords)
