"""Interpolation baselines lie on the grid whose blocks are the input's voxels."""

from __future__ import annotations

import pytest
import torch

from scorefusion.data import BASELINES, interpolate
from scorefusion.degradations import block_mean
from scorefusion.errors import ScoreFusionError

FACTOR = 2


def ramp(size: tuple[int, int, int]) -> torch.Tensor:
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    return (z + 2 * y - 3 * x)[None, None]


@pytest.mark.parametrize("method", BASELINES)
def test_geometry_on_a_ramp(method: str) -> None:
    """Away from the edges every method but nearest reproduces a linear volume exactly."""
    pytest.importorskip("scipy")
    if method == "nearest":
        fine = interpolate(ramp((3, 4, 5)), method, FACTOR)
        assert torch.equal(fine[..., ::2, ::2, ::2], ramp((3, 4, 5)))
        return
    size = (14, 15, 16)
    truth = ramp(tuple(FACTOR * n for n in size))  # type: ignore[arg-type]
    fine = interpolate(block_mean(truth, FACTOR), method, FACTOR)
    core = (..., *[slice(FACTOR * 6, -FACTOR * 6)] * 3)
    torch.testing.assert_close(fine[core], truth[core], rtol=0, atol=0.01 if method == "b-spline" else 1e-9)


@pytest.mark.parametrize("method", ["nearest", "trilinear+consistency"])
def test_consistent_baselines(method: str) -> None:
    volume = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(block_mean(interpolate(volume, method, FACTOR), FACTOR), volume)


@pytest.mark.parametrize("method", BASELINES)
def test_shape_dtype_and_factor_one(method: str) -> None:
    pytest.importorskip("scipy")
    volume = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    fine = interpolate(volume, method, 2)
    assert fine.shape == (2, 3, 8, 10, 12) and fine.dtype == torch.float32
    torch.testing.assert_close(interpolate(volume, method, 1), volume)


def test_rejects_bad_input() -> None:
    with pytest.raises(ScoreFusionError, match="did you mean 'b-spline'"):
        interpolate(torch.zeros(1, 1, 2, 2, 2), "bspline", 2)
