"""The patch distance against what is known of Gaussian patches, and what it must and must not see."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from scorefusion.errors import ScoreFusionError
from scorefusion.metrics import patch_distance as full_patch_distance

patch_distance = functools.partial(full_patch_distance, count=400)
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(24, 26, 28))


def test_the_same_crowd_is_near_zero() -> None:
    other = RNG.normal(size=TRUTH.shape)
    assert abs(patch_distance(TRUTH, TRUTH)) < 2e-3
    assert abs(patch_distance(other, TRUTH)) < 2e-3, "another draw of the same is as good as the truth"


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_gaussian_patches_of_another_size_have_the_closed_form(scale: float) -> None:
    """E exp(-|a - b|²/h) = (1 + 2 (s_a² + s_b²)/h)^(-d/2) for d independent coordinates of deviations s.

    A patch less its mean has d = size³ - 1 of them. The median of |a - b|², 2 chi²(d), is about
    2 d (1 - 2/(9 d))³.
    """
    size = 3
    d = size**3 - 1
    width = 2.0 * d * (1.0 - 2.0 / (9.0 * d)) ** 3

    def kernel(variance: float) -> float:
        return (1.0 + 2.0 * variance / width) ** (-d / 2)

    expected = kernel(2.0) + kernel(2.0 * scale**2) - 2.0 * kernel(1.0 + scale**2)
    found = patch_distance(scale * RNG.normal(size=TRUTH.shape), TRUTH, size=size)
    assert found == pytest.approx(expected, rel=0.05)


def test_nothing_in_common() -> None:
    """Flat patches against texture: 1 + E k(b, b') - 2 E k(0, b)."""
    d = 124
    width = 2.0 * d * (1.0 - 2.0 / (9.0 * d)) ** 3
    expected = 1.0 + (1 + 4 / width) ** (-d / 2) - 2 * (1 + 2 / width) ** (-d / 2)
    assert patch_distance(np.zeros(TRUTH.shape), TRUTH) == pytest.approx(expected, rel=0.05)


def test_blur_and_grain_are_seen_and_a_shift_is_not() -> None:
    smooth = sum(np.roll(TRUTH, n, axis) for axis in range(3) for n in (-1, 1)) / math.sqrt(6)
    near = patch_distance(np.roll(smooth, 5, axis=1), smooth)
    assert near < 5e-3
    grainy = smooth + 0.5 * RNG.normal(size=smooth.shape)
    assert patch_distance(grainy, smooth) > 4 * abs(near)
    blurred = (smooth + np.roll(smooth, 1, 0) + np.roll(smooth, -1, 0)) / 3
    assert patch_distance(blurred, smooth) > 4 * abs(near)


def test_a_level_does_not_count_and_places_are_where_the_truth_is_bright() -> None:
    assert patch_distance(TRUTH + 7.0, TRUTH) == pytest.approx(patch_distance(TRUTH, TRUTH), abs=1e-9)
    half = TRUTH + 10.0
    half[:14] = -50.0
    changed = half.copy()
    changed[:4] = 3.0
    assert patch_distance(changed, half) == patch_distance(half, half)


def test_it_repeats_and_works_in_two_dimensions() -> None:
    flat = RNG.normal(size=(40, 44))
    assert patch_distance(flat, flat) == patch_distance(flat, flat)
    assert patch_distance(0.3 * flat, flat) > 0.05


def test_rejects_bad_input() -> None:
    with pytest.raises(ScoreFusionError, match="volume has shape"):
        patch_distance(TRUTH[1:], TRUTH)
    with pytest.raises(ScoreFusionError, match="do not fit"):
        patch_distance(TRUTH[:4], TRUTH[:4])
    with pytest.raises(ScoreFusionError, match="found 0 places"):
        patch_distance(np.zeros((8, 8, 8)), np.zeros((8, 8, 8)))
    step = np.zeros((20, 8, 8))
    step[8:] = 1.0
    with pytest.raises(ScoreFusionError, match="no texture"):
        patch_distance(step, step)
