"""Degradations: descriptions, operators by their identities and by matrices, and what a model is given."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from scorefusion.degradations import (
    BASES,
    BlockMean,
    Chain,
    KSpace,
    Measurement,
    Nothing,
    Operator,
    Pooling,
    SliceAverages,
    SparseView,
    ThickSlices,
    base_volume,
    block_mean,
)
from scorefusion.degradations.kspace import central_box
from scorefusion.degradations.operator import conjugate_gradients, inner
from scorefusion.degradations.thick_slices import slice_profile
from scorefusion.errors import ScoreFusionError


def volume(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def like(y: Tensor, seed: int) -> Tensor:
    """Another measurement of the same shape and type."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)


def described(**values: Any) -> tuple[Operator, tuple[int, int, int]]:
    size = values.pop("size")
    operator = Measurement.model_validate(values).operator(size)
    assert operator is not None
    return operator, size


OPERATORS = {
    "blocks": (Pooling(3), (6, 3, 9)),
    "blocks of three edges": (Pooling((2, 1, 5)), (4, 7, 5)),
    "anisotropic": (Pooling((4, 1, 1)), (8, 5, 3)),
    "slices": (ThickSlices(1, 3), (5, 9, 2)),
    "slices, even gap": (ThickSlices(2, 3, 2), (3, 2, 15)),
    "slices, odd gap": (ThickSlices(0, 2, 3), (10, 3, 3)),
    "slices, gaussian": (ThickSlices(0, 4, 1, "gaussian"), (10, 3, 3)),
    "k-space": described(kind="k-space", fraction=(0.5, 0.4, 1.0), size=(5, 6, 4)),
    "k-space, one-sided": (KSpace(volume(4, 5, 1) > 0.3, (0, 1)), (4, 5, 3)),
    "lines in slices": described(kind="cs-mri", axis="y", acceleration=2, centre=0.3, size=(7, 3, 6)),
    "lines in a volume": described(kind="cs-mri", acceleration=3, centre=0.1, seed=1, size=(6, 5, 3)),
    "projections": (SparseView(3, 7, 6, iterations=200), (2, 7, 6)),
    "projections, small detector": (SparseView(4, 5, 6, detector=3, iterations=200), (1, 5, 6)),
    "a hole": described(kind="inpaint", hole=0.5, size=(5, 4, 3)),
    "holes": described(kind="inpaint", hole=0.3, holes=3, seed=2, size=(6, 5, 4)),
    "chain": (Chain(Pooling((1, 2, 1)), ThickSlices(0, 2, 1)), (6, 4, 3)),
    "chain of three": (Chain(Pooling(2), Chain(ThickSlices(1, 2), Pooling((1, 1, 2)))), (4, 8, 8)),
    "chain to k-space": (Chain(KSpace(central_box((2, 4, 3), (1, 0.5, 1))), Pooling(2)), (4, 8, 6)),
    "chain to projections": (Chain(SparseView(3, 6, 5), ThickSlices(0, 2), iterations=200), (4, 6, 5)),
}
CASES = pytest.mark.parametrize(("operator", "size"), OPERATORS.values(), ids=OPERATORS)


@CASES
def test_the_adjoint_is_one(operator: Operator, size: tuple[int, int, int]) -> None:
    x = volume(2, 1, *size)
    y = like(operator.A(x), 1)
    torch.testing.assert_close(
        inner(operator.A(x), y), inner(x, operator.A_adjoint(y)), rtol=1e-12, atol=1e-12
    )


@CASES
def test_the_pseudo_inverse_is_one(operator: Operator, size: tuple[int, int, int]) -> None:
    """All four of Penrose's conditions; the last two say that A A+ and A+ A are symmetric."""
    x, other = volume(1, 2, *size), volume(1, 2, *size, seed=2)
    y = operator.A(x)
    once = operator.A_dagger(y)
    torch.testing.assert_close(operator.A(once), y, rtol=0, atol=1e-10)
    torch.testing.assert_close(operator.A_dagger(operator.A(once)), once, rtol=0, atol=1e-10)
    seen = operator.A_dagger(operator.A(other))
    torch.testing.assert_close(inner(once, other), inner(x, seen), rtol=0, atol=1e-9)


@CASES
def test_the_pseudo_inverse_is_numpys(operator: Operator, size: tuple[int, int, int]) -> None:
    count = size[0] * size[1] * size[2]
    columns = operator.A(torch.eye(count, dtype=torch.float64).reshape(count, 1, *size))
    columns = torch.view_as_real(columns) if columns.is_complex() else columns
    matrix = columns.reshape(count, -1).T
    y = operator.A(volume(1, 1, *size))
    flat = (torch.view_as_real(y) if y.is_complex() else y).flatten()
    expected = torch.linalg.pinv(matrix, rtol=1e-10) @ flat
    torch.testing.assert_close(operator.A_dagger(y).flatten(), expected, rtol=0, atol=1e-9)


@CASES
def test_gradients(operator: Operator, size: tuple[int, int, int]) -> None:
    x = volume(1, 1, *size).requires_grad_()
    y = like(operator.A(x).detach(), 3).requires_grad_()
    assert torch.autograd.gradcheck(operator.A, (x,))
    assert torch.autograd.gradcheck(operator.A_adjoint, (y,))


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dtype(operator: Operator, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = volume(1, 1, *size, dtype=dtype)
    y = operator.A(x)
    back = operator.A_dagger(y)
    assert back.dtype == operator.A_adjoint(y).dtype == y.real.dtype and back.shape == x.shape
    assert y.real.dtype in (dtype, torch.float32)
    if not isinstance(operator, SparseView | Chain):  # whose inverse takes a precise residual
        expected = operator.A_dagger(operator.A(x.double()))
        atol = 1e-5 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(back.double(), expected, rtol=0, atol=atol)
    again = operator.A(back)
    again, y = (torch.view_as_real(v) if v.is_complex() else v for v in (again, y))
    torch.testing.assert_close(again, y, rtol=0, atol=1e-3 if dtype == torch.float32 else 0.2)


def test_conjugate_gradients_meet_a_measurement_that_no_volume_has_as_nearly_as_can_be() -> None:
    operator = SparseView(4, 5, 4)
    matrix = operator.A(torch.eye(20, dtype=torch.float64).reshape(20, 1, 1, 5, 4)).reshape(20, -1).T
    y = volume(1, 1, 1, 4, operator.detector)
    expected = torch.linalg.pinv(matrix) @ y.flatten()
    assert float((matrix @ expected - y.flatten()).norm()) > 1
    found = conjugate_gradients(operator, y, iterations=100).flatten()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        conjugate_gradients(operator, y, iterations=1000).flatten(), expected, rtol=0, atol=1e-9
    )


def test_slice_profiles_by_hand() -> None:
    assert slice_profile(2, 2, "box").tolist() == [0, 0.5, 0.5, 0]
    assert slice_profile(2, 1, "box").tolist() == [0.25, 0.5, 0.25]
    gaussian = slice_profile(5, 0, "gaussian")
    assert float(gaussian.sum()) == pytest.approx(1) and torch.equal(gaussian, gaussian.flip(0))
    # Half the height half a thickness from the middle: that is where the profile ends.
    wide = slice_profile(100, 0, "gaussian")
    assert float(wide[0] / wide[50]) == pytest.approx(0.5, abs=0.01)


def test_slices_without_gaps_are_blocks() -> None:
    x = volume(1, 1, 4, 6, 5)
    torch.testing.assert_close(ThickSlices(1, 3).A(x), block_mean(x, (1, 3, 1)))


def test_noise_is_drawn_from_its_seed_and_has_its_deviation() -> None:
    noisy, x = BlockMean(noise=0.5), volume(1, 1, 20, 20, 20)
    noise = noisy.image(x, seed=7) - x
    assert torch.equal(noise, noisy.image(x, seed=7) - x)
    assert not torch.equal(noise, noisy.image(x, seed=8) - x)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05) and abs(float(noise.mean())) < 0.02


def test_bases() -> None:
    config = SliceAverages(axis="z", thickness=3, gap=1)
    target = volume(1, 1, 8, 3, 4)
    operator = config.operator(target.shape[2:])
    assert operator is not None
    measured = operator.A(target)
    for kind in BASES[:-1]:
        made = config.degrade(target, base=kind)
        assert made.measured is not None and torch.equal(made.measured, measured)
        assert made.condition.shape == target.shape
        if kind in ("trilinear+consistency", "pseudo-inverse"):
            torch.testing.assert_close(operator.A(made.condition), measured)
    linear = interpolate(measured, size=(8, 3, 4), mode="trilinear", align_corners=False)
    torch.testing.assert_close(base_volume(measured, "trilinear", (4, 1, 1)), linear)
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 2, 2)
    inside = config.degrade(ramp, base="trilinear").condition[0, 0, 2:6, 0, 0]
    torch.testing.assert_close(inside, ramp[0, 0, 2:6, 0, 0])  # slices lie in the middle of their steps
    with pytest.raises(ScoreFusionError, match="unknown base"):
        config.degrade(target, base="cubic")
    with pytest.raises(ScoreFusionError, match="identity"):
        config.degrade(target, base="identity")


def test_nothing_is_degraded_by_none() -> None:
    x = volume(1, 1, 3, 4, 5)
    assert Nothing().operator((3, 4, 5)) is None
    assert Nothing().degrade(x) == (None, x)


def test_descriptions_are_saved_with_what_they_take_and_read_again() -> None:
    assert Measurement.model_validate({"kind": "block-mean", "factor": 4}).factors == (4, 4, 4)
    for values in (
        {"kind": "none", "factor": 1},
        {"kind": "block-mean", "factor": 2},
        {"kind": "block-mean", "factor": 1, "edges": [1, 4, 4]},
        {"kind": "thick-slices", "factor": 1, "axis": "y", "thickness": 3, "gap": 1, "profile": "box"},
        {"kind": "k-space", "factor": 1, "fraction": [0.5, 1.0, 1.0], "noise": 0.1},
        {"kind": "cs-mri", "factor": 1, "axis": "z", "acceleration": 4.0, "centre": 0.1, "seed": 3},
        {"kind": "sparse-view", "factor": 1, "views": 30},
        {"kind": "inpaint", "factor": 1, "hole": 0.3, "holes": 2, "seed": 1},
    ):
        config = Measurement.model_validate(values)
        assert json.loads(config.model_dump_json()) == values
        assert Measurement.model_validate_json(config.model_dump_json()) == config


def test_grids_and_blocks() -> None:
    def of(**values: Any) -> Measurement:
        return Measurement.model_validate(values)

    slices = of(kind="thick-slices", axis="y", thickness=3, gap=1)
    assert slices.factors == (1, 4, 1) and slices.blocks is None and slices.coarse
    assert of(kind="thick-slices", axis="x", thickness=3).blocks == (1, 1, 3)
    assert of(kind="thick-slices", axis="x", thickness=3, profile="gaussian").blocks is None
    assert of(kind="block-mean", edges=(1, 4, 4)).factors == of(kind="block-mean", edges=(1, 4, 4)).blocks
    assert of(kind="sparse-view", views=9).whole == (False, True, True)
    assert of(kind="cs-mri", acceleration=2, axis="y").whole == (True, False, True)
    assert of(kind="k-space", fraction=(1, 0.5, 1)).whole == (False, True, False)
    assert of(kind="inpaint").factors == (1, 1, 1) and not of(kind="inpaint").coarse


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "none", "factor": 4}, "'factor' is for degradation block-mean, not none"),
        ({"kind": "inpaint", "views": 4}, "'views' is for degradation sparse-view"),
        ({"kind": "k-space", "axis": "z"}, "'axis' is for degradation cs-mri and thick-slices"),
        ({"kind": "thick-slices", "axis": "z"}, "needs 'thickness'"),
        ({"kind": "sparse-view"}, "needs 'views'"),
        ({"kind": "block-mean", "factor": 2, "edges": (1, 2, 2)}, "'factor' or 'edges'"),
        ({"kind": "block-mean", "factor": 0}, "factor\n.*greater than or equal to 1"),
        (
            {"kind": "thick-slices", "axis": "z", "thickness": 2, "gap": -1},
            "gap\n.*greater than or equal to 0",
        ),
        ({"kind": "cs-mri", "acceleration": 0.5}, "acceleration\n.*greater than or equal to 1"),
        ({"kind": "k-space", "fraction": (0.5, 0, 1)}, "greater than 0"),
        ({"kind": "blockmean"}, "did you mean 'block-mean'"),
        ({"kind": "none", "factr": 1}, "Extra inputs"),
        ({"kind": "none", "noise": -1.0}, "noise\n.*greater than or equal to 0"),
    ],
)
def test_rejects_bad_descriptions(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Measurement.model_validate(values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: BlockMean(factor=4).operator((8, 8, 6)),
            "along x that is a multiple of 4; got 6",
        ),
        (lambda: ThickSlices(0, 3).A(volume(1, 1, 4, 4, 4)), "multiple of 3"),
        (lambda: ThickSlices(3, 3), "axis 0, 1 or 2"),
        (lambda: ThickSlices(0, 0), "at least 1 voxel"),
        (lambda: slice_profile(2, 0, "bx"), "did you mean 'box'"),
        (lambda: Chain(Pooling(2), Pooling(2), iterations=0), "at least 1 iteration"),
    ],
)
def test_rejects_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ScoreFusionError, match=message):
        call()
