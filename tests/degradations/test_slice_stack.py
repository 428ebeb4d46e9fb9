"""Slices of any distance and thickness: the operator against its matrix, drawn measurements, channels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from scorefusion.degradations import Measurement, SliceStack, base_volume
from scorefusion.errors import ScoreFusionError

KINDS = [
    SliceStack(step=step, width=width, profile=profile)
    for step, width, profile in itertools.product((2, 3, 8), (0.6, 1.0, 1.2), ("box", "gaussian"))
]


def dense(measurement: SliceStack, count: int) -> torch.Tensor:
    """The matrix of a measurement of columns of voxels, float64, from integrals of the continuous profile."""
    step, width = measurement.step, measurement.width * measurement.step
    sigma = width / (2 * math.sqrt(2 * math.log(2)))

    def height(z: float) -> float:
        if measurement.profile == "box":
            return float(abs(z) < width / 2)
        return math.exp(-0.5 * (z / sigma) ** 2) * (abs(z) < 1.5 * step)

    matrix = torch.zeros(count, count * step, dtype=torch.float64)
    for n in range(count):
        middle = (n + 0.5) * step
        for voxel in range(-2 * step, (count + 2) * step):
            edges = [p - middle for p in (-width / 2 + middle, width / 2 + middle) if voxel < p < voxel + 1]
            share = quad(height, voxel - middle, voxel + 1 - middle, points=edges or None)[0]
            matrix[n, min(max(voxel, 0), count * step - 1)] += share
    return matrix / matrix.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("measurement", KINDS, ids=str)
def test_the_operator_is_its_matrix(measurement: SliceStack) -> None:
    for count in (1, 2, 5):
        operator = measurement.operator((count * measurement.step, 2, 3))
        assert operator is not None
        x = torch.randn(2, 1, count * measurement.step, 2, 3, dtype=torch.float64)
        y = torch.randn(2, 1, count, 2, 3, dtype=torch.float64)
        a = dense(measurement, count)
        torch.testing.assert_close(operator.A(x), torch.einsum("nz,bczyx->bcnyx", a, x), atol=1e-6, rtol=0)
        adjoint = torch.einsum("nz,bcnyx->bczyx", a, y)
        torch.testing.assert_close(operator.A_adjoint(y), adjoint, atol=1e-6, rtol=0)
        inverse = torch.einsum("zn,bcnyx->bczyx", torch.linalg.pinv(a), y)
        torch.testing.assert_close(operator.A_dagger(y), inverse, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("measurement", KINDS, ids=str)
def test_a_projected_volume_measures_as_was_measured(measurement: SliceStack) -> None:
    generator = torch.Generator().manual_seed(0)
    operator = measurement.operator((20 * measurement.step, 4, 4))
    assert operator is not None
    y = 2 * torch.rand(1, 1, 20, 4, 4, generator=generator) - 1
    x = torch.randn(1, 1, 20 * measurement.step, 4, 4, generator=generator)
    projected = operator.project(y)(x)
    assert (operator.A(projected) - y).abs().max() < 1e-5
    torch.testing.assert_close(operator.project(y)(projected), projected, atol=1e-5, rtol=0)
    base = base_volume(y, "trilinear+consistency", measurement.factors, operator)
    assert (operator.A(base) - y).abs().max() < 1e-5


@pytest.mark.parametrize("measurement", KINDS, ids=str)
def test_a_volume_within_limits_measures_as_was_measured(measurement: SliceStack) -> None:
    """To rounding where profiles do not overlap, else to the rate of alternating projections."""
    generator = torch.Generator().manual_seed(0)
    operator = measurement.operator((6 * measurement.step, 4, 4))
    assert operator is not None
    x = torch.rand(1, 1, 6 * measurement.step, 4, 4, generator=generator)
    y = operator.A(x)
    noisy = x + 0.3 * torch.randn(x.shape, generator=generator)
    bounded = operator.bounded(noisy, y, 0.0, 1.0)
    assert bounded.min() >= 0 and bounded.max() <= 1
    overlap = measurement.profile == "gaussian" or measurement.width > 1
    assert (operator.A(bounded) - y).abs().max() <= (1e-2 if overlap else 1e-5)
    assert (operator.A(noisy.clamp(0, 1)) - y).abs().max() > 0.05, "clipping alone does not"


@pytest.mark.parametrize("profile", ["box", "gaussian"])
@pytest.mark.parametrize("width", [0.71, 1.13])
def test_an_operator_traced_on_the_meta_device_measures_as_any_other(profile: str, width: float) -> None:
    """Profiles and inverses are cached: those of a forecast of memory must hold numbers."""
    measurement = SliceStack.model_validate(
        {"kind": "slice-stack", "step": 4, "width": width, "profile": profile}
    )
    with torch.device("meta"):
        traced = measurement.operator((12, 2, 2), device="meta")
        assert traced is not None
        assert traced.A_dagger(traced.A(torch.empty(1, 1, 12, 2, 2))).shape == (1, 1, 12, 2, 2)
    operator = measurement.operator((12, 2, 2))
    assert operator is not None
    y = torch.rand(1, 1, 3, 2, 2)
    torch.testing.assert_close(operator.A(operator.A_dagger(y)), y)


def test_flat_volumes_stay_flat_and_wrong_lengths_are_named() -> None:
    for measurement in KINDS:
        operator = measurement.operator((2 * measurement.step, 3, 3))
        assert operator is not None
        x = torch.ones(1, 1, 2 * measurement.step, 3, 3)
        torch.testing.assert_close(operator.A(x), torch.ones(1, 1, 2, 3, 3))
    with pytest.raises(ScoreFusionError, match="multiple of 8"):
        SliceStack(step=8, width=0.9).make_operator((16, 1, 1), None, "cpu").A(torch.zeros(1, 1, 12, 1, 1))
    with pytest.raises(ValueError, match="least and the greatest"):
        SliceStack(steps=(5, 2))


def test_drawn_measurements_cover_their_ranges_and_are_told() -> None:
    typical = SliceStack(gains=0.03)
    random = np.random.default_rng(0)
    drawn = [typical.drawn(random) for _ in range(400)]
    assert {each.step for each in drawn} == set(range(2, 9))
    assert {each.profile for each in drawn} == {"box", "gaussian"}
    assert all(0.6 <= each.width <= 1.2 for each in drawn)
    assert 0.1 < np.mean([each.gain > 0 for each in drawn]) < 0.3
    again = SliceStack.model_validate(drawn[3].model_dump())
    assert again == drawn[3] and Measurement.model_validate(typical.model_dump()) == typical
    told = SliceStack(step=4, width=1.0, profile="box").describe(6, 2, "cpu")
    torch.testing.assert_close(told[0], torch.tensor([0.25, 0.75, -0.75, -0.25, 0.25, 0.75]))
    torch.testing.assert_close(told[1:, 0], torch.tensor([0.0, 4 / math.sqrt(12) - 1.2]))
    apart = {tuple(each.describe(1, 0, "cpu")[:, 0].tolist()) for each in drawn}
    assert len(apart) > 250, "the channels distinguish drawn measurements"


def test_a_gain_scales_each_slice() -> None:
    target = torch.rand(1, 1, 20, 4, 4)
    plain = SliceStack(step=5).degrade(target, seed=3)
    varied = SliceStack(step=5, gain=0.05).degrade(target, seed=3)
    assert plain.measured is not None and varied.measured is not None
    ratio = (varied.measured + 1) / (plain.measured + 1)
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert 0.005 < (ratio[0, 0, :, 0, 0] - 1).abs().mean() < 0.15
