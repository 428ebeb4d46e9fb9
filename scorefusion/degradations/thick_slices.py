"""Slices thicker than a voxel, with gaps between them."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from scorefusion.degradations.measurement import AXES, Axis, Count, Measurement, Pooling, register
from scorefusion.degradations.operator import LinearOperator
from scorefusion.errors import ScoreFusionError, unknown_name


def slice_profile(thickness: int, gap: int, profile: str) -> Tensor:
    """How much each voxel between two slices' borders counts, float64 ``[thickness + gap]``, of sum 1.

    A slice lies in the middle of its step of ``thickness + gap`` voxels, so where the gap is odd it cuts two
    voxels in half. ``box`` is the share of a voxel within the thickness. ``gaussian`` integrates a Gaussian
    whose full width at half maximum is the thickness over each voxel; its tails end where the next slice's
    step begins, so no voxel is in two slices.
    """
    if profile not in ("box", "gaussian"):
        raise unknown_name("slice profile", profile, ("box", "gaussian"))
    if thickness < 1 or gap < 0:
        raise ScoreFusionError(
            f"slices need a thickness of at least 1 voxel and a gap of at least 0; got {thickness} and {gap}"
        )
    borders = torch.arange(thickness + gap + 1, dtype=torch.float64) - (thickness + gap) / 2
    if profile == "box":
        below = borders.clamp(-thickness / 2, thickness / 2)
    else:
        sigma = thickness / math.sqrt(8 * math.log(2))
        below = torch.erf(borders / (sigma * math.sqrt(2)))
    weights = below.diff()
    return weights / weights.sum()


class ThickSlices(LinearOperator):
    """``A`` averages over each slice's profile along one axis; ``A_dagger`` puts the profile back.

    Slices share no voxel, so ``A A*`` is a number, and the pseudo-inverse is the adjoint over that number.
    Voxels in a gap, which no slice sees, are 0 there.

    Args:
        axis: 0, 1 or 2 for z, y or x: what the slices are stacked along.
        thickness: of a slice, in voxels.
        gap: between slices, in voxels.
        profile: ``box`` or ``gaussian``; see :func:`slice_profile`.

    Raises:
        ScoreFusionError: for numbers out of range, and in ``A`` for a length that is not a whole number of
            steps of ``thickness + gap`` voxels.
    """

    local = True

    def __init__(self, axis: int, thickness: int, gap: int = 0, profile: str = "box") -> None:
        if axis not in (0, 1, 2):
            raise ScoreFusionError(f"slices are stacked along axis 0, 1 or 2 (z, y, x); got {axis}")
        self.axis, self.weights = axis, slice_profile(thickness, gap, profile)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.norm = float(self.weights.square().sum())

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to the same with one axis ``thickness + gap`` times shorter."""
        axis, step = self.axis + 2, len(self.weights)
        if x.ndim != 5 or x.shape[axis] % step:
            raise ScoreFusionError(
                f"slices {step} voxels apart along {'zyx'[self.axis]} need a volume [B, C, D, H, W] whose "
                f"length there is a multiple of {step}; got shape {list(x.shape)}"
            )
        steps = x.unflatten(axis, (x.shape[axis] // step, step))
        return (steps * self._along(x)).sum(dim=axis + 1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        axis = self.axis + 2
        return (y.unsqueeze(axis + 1) * self._along(y)).flatten(axis, axis + 1)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y) / self.norm

    def _along(self, like: Tensor) -> Tensor:
        """The profile, to multiply volumes whose axis is split into steps."""
        key = like.dtype, like.device
        if key not in self._copies:
            self._copies[key] = self.weights.to(like).reshape(-1, *(1,) * (2 - self.axis))
        return self._copies[key]


@register
class SliceAverages(Measurement):
    """Averages over slices thicker than a voxel."""

    coarse: ClassVar[bool] = True
    kind: Literal["thick-slices"] = "thick-slices"
    axis: Axis  #: that the slices are stacked along
    thickness: Count  #: of a slice, in voxels
    gap: int = Field(default=0, ge=0)  #: between two slices, in voxels
    #: ``box``, or ``gaussian`` with the thickness as full width at half maximum
    profile: Literal["box", "gaussian"] = "box"

    @property
    def factors(self) -> tuple[int, int, int]:
        z, y, x = (self.thickness + self.gap if axis == self.axis else 1 for axis in AXES)
        return z, y, x

    @property
    def blocks(self) -> tuple[int, int, int] | None:
        return self.factors if self.gap == 0 and self.profile == "box" else None

    def make_operator(
        self, size: Sequence[int], seed: int | None, device: torch.device | str
    ) -> Pooling | ThickSlices:
        if self.blocks is not None:
            return Pooling(self.blocks)
        return ThickSlices(AXES.index(self.axis), self.thickness, self.gap, self.profile)
