"""The fused score and its gradient: every backend against the PyTorch reference, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import check, needs_cuda
from scorefusion.ops import backends
from scorefusion.ops.fuse_scores import fuse_scores
from scorefusion.ops.reference import fuse_scores as reference

# The paper's volume: 22 MB a tensor, so that what is read and written passes the last-level cache.
SIZES = {True: (152, 192, 192), False: (5, 6, 7)}
CASES = [
    pytest.param("torch", "cpu", id="torch reference"),
    pytest.param("compile", "cpu", id="torch.compile", marks=pytest.mark.compiled),
    pytest.param(
        "cpp",
        "cpu",
        id="cpp",
        marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp"))),
    ),
    pytest.param("torch", "cuda", id="torch reference, cuda", marks=[needs_cuda, pytest.mark.gpu]),
    pytest.param("triton", "cuda", id="triton", marks=[needs_cuda, pytest.mark.gpu]),
]
PLANES = {
    "axial, coronal, sagittal": "acs",
    "axial alone": "aaa",
    "sagittal alone": "sss",
    "six branches": "acsacs",
}


def slice_major(planes: str, size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Return scores [1, 1, D, H, W] as stacks of slices, the way branches make them."""
    d, h, w = size
    made = {"a": ((1, d, 1, h, w), 2), "c": ((1, h, 1, d, w), 3), "s": ((1, w, 1, d, h), 4)}
    g = torch.Generator().manual_seed(0)
    return [torch.randn(made[plane][0], generator=g).to(dtype).movedim(1, made[plane][1]) for plane in planes]


@pytest.mark.main_case(name="axial, coronal, sagittal", dtype=torch.float32)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize(("backend", "device"), CASES)
def test_fuse_scores(
    measure: Callable[..., Any],
    compiled: Callable[..., Any],
    timed: bool,
    backend: str,
    device: str,
    name: str,
    dtype: torch.dtype,
) -> None:
    count = len(PLANES[name])
    scores = slice_major(PLANES[name], SIZES[timed], dtype)
    maps = torch.randn(1, count, *SIZES[timed]).to(dtype)
    base = [1.0 / count] * count
    expected = reference.fuse_scores(scores, maps, base, 1.0)
    here = ([score.to(device) for score in scores], maps.to(device), base, 1.0)
    run = compiled(reference.fuse_scores) if backend == "compile" else fuse_scores
    keywords = {} if backend == "compile" else {"backend": backend}

    def body() -> Tensor:
        return run(*here, **keywords)

    check(body().cpu(), expected, baseline=backend == "compile", rtol=1e-5, atol=1e-5)
    voxels, size = expected.numel(), scores[0].element_size()
    measure(
        body,
        group=f"fuse_scores, {name}, {str(dtype).removeprefix('torch.')}, {device}",
        device=device,
        reference=backend == "torch",
        bytes=voxels * (2 * count * size + 4),
    )


@pytest.mark.main_case()
@pytest.mark.parametrize(("backend", "device"), CASES)
def test_fuse_scores_backward(
    measure: Callable[..., Any], compiled: Callable[..., Any], timed: bool, backend: str, device: str
) -> None:
    scores = slice_major("acs", SIZES[timed], torch.float32)
    grad = torch.randn(1, 1, *SIZES[timed])
    maps = torch.randn(1, 3, *SIZES[timed])
    expected = reference.fuse_scores_backward(grad, scores, 1.0)
    there, slope = [score.to(device) for score in scores], grad.to(device)
    leaf = maps.to(device).requires_grad_()
    chosen = None if backend == "compile" else backend
    fused = fuse_scores(there, leaf, [1 / 3] * 3, 1.0, backend=chosen)
    definition = compiled(reference.fuse_scores_backward) if backend == "compile" else None

    def body() -> Tensor:
        if definition is not None:
            return definition(slope, there, 1.0)
        return torch.autograd.grad(fused, leaf, slope, retain_graph=True)[0]

    check(body().cpu(), expected, baseline=backend == "compile", rtol=1e-5, atol=1e-5)
    measure(
        body,
        group=f"fuse_scores' gradient of the maps, float32, {device}",
        device=device,
        reference=backend == "torch",
        bytes=4 * grad.numel() * 7,
    )
