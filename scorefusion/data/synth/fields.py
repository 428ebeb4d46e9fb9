"""Smooth random fields: cubic B-splines with random coefficients, evaluated on a grid one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_POWER = 0.479
"""Mean over a knot interval of the sum of squares of the cubic B-spline's values."""


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        start: (z, y, x) of the first voxel's centre in mm.
        spacing: voxel size in mm.
        shape: voxels along (z, y, x).
    """

    start: tuple[float, float, float]
    spacing: float
    shape: tuple[int, int, int]

    def axis(self, axis: int) -> np.ndarray:
        """Centres along an axis in mm from the first voxel's outer face, float64."""
        return (np.arange(self.shape[axis]) + 0.5) * self.spacing

    @property
    def extent(self) -> np.ndarray:
        """(z, y, x) in mm."""
        return np.array(self.shape) * self.spacing

    @property
    def affine(self) -> np.ndarray:
        """float64 ``[4, 4]``, (x, y, z) index to mm."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = self.start[::-1]
        return affine

    def thinned(self, step: int) -> Grid:
        """Every ``step``-th voxel, in the same box."""
        shape = tuple(max(1, n // step) for n in self.shape)
        return Grid(self.start, self.spacing * step, shape)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Field:
    """A random field of unit variance with a knot every ``knot`` mm, independent of the grid it is seen on.

    Attributes:
        coefficients: float32 ``[d, h, w]``.
        knot: in mm.
    """

    coefficients: np.ndarray
    knot: float

    @classmethod
    def draw(cls, random: np.random.Generator, extent: Sequence[float] | np.ndarray, knot: float) -> Field:
        """Draw a field that covers a box of ``extent`` (z, y, x) mm."""
        size = [int(np.ceil(length / knot)) + 3 for length in extent]
        return cls((random.standard_normal(size) / _POWER**1.5).astype(np.float32), knot)

    def on(self, grid: Grid, derivative: int | None = None) -> np.ndarray:
        """float32 ``[D, H, W]``: its values, or its derivative along an axis, per mm."""
        values = self.coefficients
        for axis in range(3):
            basis = _basis(grid.axis(axis), self.knot, self.coefficients.shape[axis], derivative == axis)
            # The axis just finished goes to the back; after three turns the order is z, y, x again.
            values = np.tensordot(values, basis, axes=(0, 1))
        return values


def _basis(places: np.ndarray, knot: float, count: int, derived: bool) -> np.ndarray:
    """float32 ``[places, count]``: the cubic B-splines, or their derivatives, at places in mm."""
    at = places[:, None] / knot - (np.arange(count)[None, :] - 1)
    far = np.abs(at)
    if derived:
        near = at * (1.5 * far - 2.0)
        tail = -0.5 * np.sign(at) * (2.0 - far) ** 2
        values = np.where(far < 1, near, np.where(far < 2, tail, 0.0)) / knot
    else:
        near = 2 / 3 - far**2 + far**3 / 2
        values = np.where(far < 1, near, np.where(far < 2, (2.0 - far) ** 3 / 6, 0.0))
    return values.astype(np.float32)
