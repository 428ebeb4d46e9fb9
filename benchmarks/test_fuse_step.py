"""One solver step, with noise and without: every backend against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import check
from benchmarks.test_fuse_scores import CASES, SIZES, slice_major
from scorefusion.ops.fuse_step import fuse_step
from scorefusion.ops.noise import noise_keys
from scorefusion.ops.reference import fuse_step as reference

ROWS = {
    "noise": (1.2, -0.7, 0.5, 0.4, 0.2, 0.3),
    "no noise": (1.2, -0.7, 0.5, 0.4, 0.2, 0.0),
}
FACTORS = {"4x4x4 blocks": (4, 4, 4), "no projection": (1, 1, 1)}


@pytest.mark.main_case(row="noise", blocks="4x4x4 blocks", dtype=torch.float32)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("blocks", FACTORS)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("backend", "device"), CASES)
def test_fuse_step(
    measure: Callable[..., Any],
    compiled: Callable[..., Any],
    timed: bool,
    backend: str,
    device: str,
    row: str,
    blocks: str,
    dtype: torch.dtype,
) -> None:
    size = SIZES[timed] if timed else (4, 8, 12)
    scores = slice_major("acs", size, dtype)
    maps, x_t, x0_prev = (
        torch.randn(1, 3, *size).to(dtype),
        torch.randn(1, 1, *size),
        torch.randn(1, 1, *size),
    )
    rows, index = torch.tensor([ROWS[row]]), torch.tensor([0], dtype=torch.int32)
    keys = noise_keys([3])
    tail = (1.0, FACTORS[blocks], None)
    arguments = (scores, maps, [1 / 3] * 3, 1.0, x_t, x0_prev, rows, index, keys)
    expected = reference.fuse_step(*arguments, *tail)
    there = tuple(value.to(device) if isinstance(value, Tensor) else value for value in arguments[1:])
    here = ([score.to(device) for score in scores], *there)
    definition = compiled(reference.fuse_step) if backend == "compile" else None

    def body() -> tuple[Tensor, Tensor]:
        if definition is not None:
            return definition(*here, *tail)
        return fuse_step(*here, clamp=1.0, factor=FACTORS[blocks], backend=backend)

    for found, wanted in zip(body(), expected, strict=True):
        check(found.cpu(), wanted, baseline=backend == "compile", rtol=1e-5, atol=1e-5)
    measure(
        body,
        group=f"fuse_step, {blocks}, {row}, {str(dtype).removeprefix('torch.')}, {device}",
        device=device,
        reference=backend == "torch",
        bytes=x_t.numel() * (6 * scores[0].element_size() + 4 * 4),
    )
