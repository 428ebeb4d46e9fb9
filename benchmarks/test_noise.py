"""Counter-based noise: every backend against the PyTorch reference; it must write 4 bytes a voxel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.conftest import needs_cuda
from scorefusion.ops import backends, normal

SHAPES = {
    "box": (1, 1, 80, 96, 96),
    "batch of odd boxes": (4, 1, 33, 47, 61),
}
CASES = [
    pytest.param("torch", "cpu", id="torch reference"),
    pytest.param(
        "cpp",
        "cpu",
        id="cpp",
        marks=pytest.mark.skipif(bool(backends.missing("cpp")), reason=str(backends.missing("cpp"))),
    ),
    pytest.param("torch", "cuda", id="torch reference, cuda", marks=[needs_cuda, pytest.mark.gpu]),
    pytest.param("triton", "cuda", id="triton", marks=[needs_cuda, pytest.mark.gpu]),
]


@pytest.mark.main_case(name="box")
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("backend", "device"), CASES)
def test_noise(measure: Callable[..., Any], timed: bool, name: str, backend: str, device: str) -> None:
    shape = SHAPES[name] if timed else (SHAPES[name][0], 1, 5, 6, 7)
    seeds = list(range(shape[0]))
    expected = normal(shape, seeds, 1, origin=(1, 2, 3), backend="torch")
    draw = functools.partial(normal, shape, seeds, 1, origin=(1, 2, 3), device=device, backend=backend)
    assert torch.equal(draw().cpu(), expected)
    measure(
        draw,
        group=f"noise, {name}, {device}",
        device=device,
        reference=backend == "torch",
        bytes=4 * expected.numel(),
    )
