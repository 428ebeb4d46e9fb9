"""Cutting slabs of 2.5D slices: every backend against the PyTorch reference, by plane, model and dtype.

The bytes are the compulsory ones: the slab's slices of each source once, the result once. Slabs are larger
than the last-level cache. `cpp, memory at hand` writes to memory that is already there, as the copying does
whose rate it is compared with; the other cases allocate their result, as callers do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.conftest import needs_cuda
from scorefusion.ops import backends
from scorefusion.ops.backends import view
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference import gather_slices as reference
from scorefusion.ops.reference.planes import AXIS

needs_cpp = pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp")))
MODELS = {"t1-sr4, 6 channels": 0, "paper, 10 channels": 4}
CASES = [
    pytest.param("torch", "cpu", id="torch reference"),
    pytest.param("compiled", "cpu", id="torch.compile", marks=pytest.mark.compiled),
    pytest.param("cpp", "cpu", id="cpp", marks=needs_cpp),
    pytest.param("cpp, memory at hand", "cpu", id="cpp, memory at hand", marks=needs_cpp),
    pytest.param("torch", "cuda", id="torch reference, cuda", marks=[needs_cuda, pytest.mark.gpu]),
    pytest.param("triton", "cuda", id="triton", marks=[needs_cuda, pytest.mark.gpu]),
]
CONTEXT = 2


@pytest.mark.main_case(model="t1-sr4, 6 channels", plane="coronal", dtype=torch.float32)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("plane", AXIS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("backend", "device"), CASES)
def test_gather_slices(
    measure: Callable[..., Any],
    compiled: Callable[..., Any],
    timed: bool,
    backend: str,
    device: str,
    model: str,
    plane: str,
    dtype: torch.dtype,
) -> None:
    box, rows = ((152, 192, 192), 96) if timed else ((9, 10, 11), 5)
    x_t, condition = (torch.randn(1, 1, *box, device=device) for _ in range(2))
    common = torch.randn(1, MODELS[model], *box, device=device) if MODELS[model] else None
    start, stop = 2, 2 + rows
    arguments = (x_t, condition, common, plane, start, stop, None, CONTEXT, "modality", dtype)
    expected = reference.gather_slices(*arguments)
    cut = functools.partial(
        gather_slices, x_t, condition, common, plane, start, stop, context=CONTEXT, dtype=dtype
    )
    run: Callable[[], torch.Tensor] = functools.partial(cut, backend=backend)
    if backend == "compiled":
        run = functools.partial(compiled(reference.gather_slices), *arguments)
    elif backend == "cpp, memory at hand":
        from scorefusion import _C

        out = torch.zeros_like(expected)
        shared = None if common is None else view(common)
        described = (view(out), view(x_t), view(condition), shared, [0], AXIS[plane], start, stop, CONTEXT)

        def run() -> torch.Tensor:
            _C.gather_slices(*described, False, torch.get_num_threads())
            return out

    assert torch.equal(run(), expected)
    pixels = expected.shape[2] * expected.shape[3]
    read = 4 * pixels * (rows + 2 * CONTEXT + rows * (1 + MODELS[model]))
    measure(
        run,
        group=f"gather_slices, {model}, {plane}, {str(dtype).removeprefix('torch.')}, {device}",
        device=device,
        reference=backend == "torch",
        bytes=read + expected.numel() * expected.element_size(),
    )
