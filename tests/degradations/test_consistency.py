"""The projection onto images whose block means are what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool3d, interpolate

from scorefusion.degradations import Pooling, Projection, block_mean
from scorefusion.degradations.measurement import upsample_blocks
from scorefusion.errors import ScoreFusionError

FACTORS = [1, 2, 4, (1, 2, 3), (4, 1, 1)]


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", FACTORS)
def test_matches_pooling_and_nearest_upsampling(factor: Any) -> None:
    x = volume(2, 3, 8, 12, 24)
    means = block_mean(x, factor)
    assert torch.allclose(means, avg_pool3d(x, factor))
    edges = (factor,) * 3 if isinstance(factor, int) else factor
    assert torch.equal(upsample_blocks(means, factor), interpolate(means, scale_factor=edges, mode="nearest"))


def test_block_mean_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 2, 2, 4)
    assert block_mean(x, 2).flatten().tolist() == [6.5, 8.5]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("given", [False, True], ids=["residual", "measured"])
def test_means_become_exact_and_twice_is_once(factor: Any, given: bool) -> None:
    x = volume(2, 1, 8, 12, 24)
    measured = block_mean(volume(2, 1, 8, 12, 24, seed=1), factor)
    project = Projection(Pooling(factor), measured if given else None)
    once = project(x)
    expected = measured if given else torch.zeros_like(measured)
    assert torch.allclose(block_mean(once, factor), expected, atol=1e-14)
    assert torch.allclose(project(once), once, atol=1e-14)


def test_moves_no_further_than_it_must() -> None:
    """The change is constant in each block, so it is orthogonal to every image of zero block means."""
    x = volume(1, 1, 4, 8, 8)
    change = Projection(Pooling(4))(x) - x
    detail = Projection(Pooling(4))(volume(1, 1, 4, 8, 8, seed=2))
    assert abs(float((change * detail).sum())) < 1e-12


def test_differentiable() -> None:
    x = volume(1, 1, 2, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(Projection(Pooling(2)), (x,))


def test_empty() -> None:
    assert Projection(Pooling(2))(torch.empty(0, 1, 4, 4, 4)).shape == (0, 1, 4, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: block_mean(volume(1, 1, 8, 9, 8), 4),
            "8 x 9 x 8 voxels is not a whole number of 4 x 4 x 4 blocks",
        ),
        (lambda: Projection(Pooling(4))(volume(1, 1, 8, 8, 6)), "8 x 8 x 6 voxels is not a whole number"),
        (lambda: block_mean(volume(8, 8, 8), 4), r"\[B, C, D, H, W\], got shape \[8, 8, 8\]"),
        (lambda: Projection(Pooling(0)), "at least 1; got 0"),
        (lambda: Projection(Pooling((2, 2))), r"got \(2, 2\)"),
        (
            lambda: Projection(Pooling(2), volume(1, 1, 4, 4, 4))(volume(1, 1, 4, 4, 8)),
            r"measured has \[4, 4, 4\] blocks, the volume has \[2, 2, 4\]",
        ),
    ],
)
def test_rejects_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        call()
