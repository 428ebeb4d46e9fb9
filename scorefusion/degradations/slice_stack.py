"""Slices of any thickness, any distance apart: what a clinical scan measures of an isotropic volume."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from scorefusion.degradations.measurement import Measurement, Pooling, register
from scorefusion.degradations.operator import LinearOperator
from scorefusion.errors import ScoreFusionError

Profile = Literal["box", "gaussian"]
Step = Annotated[int, Field(ge=2, le=16)]
Width = Annotated[float, Field(ge=0.25, le=2)]
_ROUNDS = 32
NEGLIGIBLE = 1e-9  #: diagonals of an inverse whose entries are all below this are left out


@functools.lru_cache(maxsize=64)
def step_profile(step: int, width: float, profile: str) -> Tensor:
    """Return how much each voxel around a slice counts, float64 ``[2·n + 1, step]`` of sum 1.

    Row n is the slice's own step of voxels, with the slice in its middle; the rows before and after are the
    steps of its neighbours. ``box`` is the share of a voxel within the thickness of ``width`` steps;
    ``gaussian`` integrates a Gaussian whose full width at half maximum is the thickness, cut off 1.5 steps
    from its middle.
    """
    reach = 1 if profile == "gaussian" or width > 1 else 0
    # On the CPU also where the meta device is the default, as it is while memory is forecast.
    borders = torch.arange((2 * reach + 1) * step + 1, dtype=torch.float64, device="cpu")
    borders = borders - (reach + 0.5) * step
    if profile == "box":
        below = borders.clamp(-width * step / 2, width * step / 2)
    else:
        below = torch.erf(borders / (width * step / math.sqrt(8 * math.log(2)) * math.sqrt(2)))
    weights = below.diff().reshape(2 * reach + 1, step)
    return weights / weights.sum()


class SliceProfiles(LinearOperator):
    """``A`` averages over each slice's profile along z; profiles of neighbouring slices may overlap.

    Beyond its ends a volume continues as its first and last voxel. Every sum has a fixed order, so a CPU's
    number of threads changes no bit.

    Args:
        step: from one slice to the next, in voxels.
        width: thickness of a slice, in steps.
        profile: ``box``, or ``gaussian`` with the thickness as full width at half maximum.
    """

    local = True

    def __init__(self, step: int, width: float = 1.0, profile: str = "box") -> None:
        self.step, self.rows = step, step_profile(step, width, profile)
        self.reach = len(self.rows) // 2

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to ``[B, C, D / step, H, W]``.

        Raises:
            ScoreFusionError: if D is not a whole number of steps.
        """
        if x.ndim != 5 or x.shape[2] % self.step:
            raise ScoreFusionError(
                f"slices {self.step} voxels apart along z need a volume [B, C, D, H, W] whose length there "
                f"is a multiple of {self.step}; got shape {list(x.shape)}"
            )
        steps = self._extended(x).unflatten(2, (-1, self.step))
        count = x.shape[2] // self.step
        parts = [(steps[:, :, n : n + count] * self._row(n, x)).sum(dim=3) for n in range(len(self.rows))]
        return functools.reduce(torch.add, parts)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """``[B, C, n, H, W]`` to ``[B, C, n · step, H, W]``."""
        b, c, count, h, w = y.shape
        x = y.new_zeros(b, c, count + 2 * self.reach, self.step, h, w)
        for n in range(len(self.rows)):
            x[:, :, n : n + count] += y.unsqueeze(3) * self._row(n, y)
        x = x.flatten(2, 3)
        if beyond := self.reach * self.step:  # what lies beyond the ends is the first and the last voxel
            first, x, last = x.split([beyond, count * self.step, beyond], dim=2)
            x[:, :, 0] += first.sum(dim=2)
            x[:, :, -1] += last.sum(dim=2)
        return x

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(self._weighed(y))

    def bounded(self, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
        """Limit x to [lo, hi] and keep its measurement at ``y``, which lies between them.

        What clipping takes from a slice, its other voxels share: to rounding where profiles do not overlap.
        Where they do, no volume within the limits may measure so, and clipping alternates with projection.
        """
        x = x.clamp(lo, hi)
        for _ in range(_ROUNDS):
            apart = self.A(x) - y
            if float(apart.abs().max()) <= 1e-6 * (hi - lo):
                break
            if self.reach:
                x = x - self.A_dagger(apart)
            else:
                above = (apart > 0).repeat_interleave(self.step, dim=2)
                free = torch.where(above, x > lo, x < hi).to(x.dtype)
                share = (free.unflatten(2, (-1, self.step)) * self._row(0, x).square()).sum(dim=3)
                x = x - free * self.A_adjoint(apart / share.clamp_min(torch.finfo(x.dtype).tiny))
            x = x.clamp(lo, hi)
        return x

    def _weighed(self, y: Tensor) -> Tensor:
        """Apply the inverse of ``A A*``, a matrix over slices, diagonal by diagonal."""
        count = y.shape[2]
        if not self.reach:
            return y / float(self.rows.square().sum())
        found = torch.zeros_like(y)
        weights = tuple(self.rows.flatten().tolist())
        for offset, entries in _inverse_diagonals(self.step, weights, count):
            to, of = max(0, -offset), max(0, offset)
            n = count - abs(offset)
            found[:, :, to : to + n] += y[:, :, of : of + n] * entries.to(y).reshape(-1, 1, 1)
        return found

    def _extended(self, x: Tensor) -> Tensor:
        more = self.reach * self.step
        return F.pad(x, (0, 0, 0, 0, more, more), mode="replicate") if more else x

    def _row(self, n: int, like: Tensor) -> Tensor:
        return self.rows[n].to(like).reshape(-1, 1, 1)


@functools.lru_cache(maxsize=32)
def _inverse_diagonals(step: int, weights: tuple[float, ...], count: int) -> list[tuple[int, Tensor]]:
    """Offset and entries of each diagonal of the inverse of ``A A*`` for ``count`` slices, float64."""
    profile = np.array(weights)
    reach = len(weights) // step // 2
    places = np.arange(count)[:, None] * step + np.arange(len(weights)) - reach * step
    a = np.zeros((count, count * step))
    np.add.at(a, (np.arange(count)[:, None], places.clip(0, count * step - 1)), profile)
    inverse = np.linalg.inv(a @ a.T)
    offsets = [k for k in range(1 - count, count) if np.abs(inverse.diagonal(k)).max() > NEGLIGIBLE]
    return [(k, torch.from_numpy(inverse.diagonal(k).copy())) for k in offsets]


@register
class SliceStack(Measurement):
    """Slices along z, thicker than a voxel, of each scan's own distance and thickness.

    A model's own value is a typical scan; :meth:`drawn` draws another for each training example, and a
    pipeline makes one of each scan's header. The networks receive the channels of :meth:`describe`.
    """

    coarse: ClassVar[bool] = True
    channels: ClassVar[int] = 3
    crops_measure_alike: ClassVar[bool] = True
    of_each_scan: ClassVar[bool] = True
    kind: Literal["slice-stack"] = "slice-stack"
    step: Step = 5  #: from one slice to the next, in voxels of the target
    width: Width = 1.0  #: thickness of a slice, in steps
    profile: Profile = "box"  #: or ``gaussian``, with the thickness as full width at half maximum
    gain: float = Field(default=0.0, ge=0)  #: standard deviation of a factor that each slice has of its own
    steps: tuple[Step, Step] = (2, 8)  #: least and greatest step of a drawn measurement
    widths: tuple[Width, Width] = (0.6, 1.2)  #: least and greatest width of a drawn measurement
    gains: float = Field(default=0.0, ge=0)  #: gain of one in five drawn measurements

    @model_validator(mode="after")
    def _check(self) -> SliceStack:
        if self.steps[0] > self.steps[1] or self.widths[0] > self.widths[1]:
            raise ValueError("steps and widths are pairs of the least and the greatest")
        return self

    @property
    def factors(self) -> tuple[int, int, int]:
        return self.step, 1, 1

    @property
    def blocks(self) -> tuple[int, int, int] | None:
        return self.factors if self.profile == "box" and self.width == 1 else None

    @property
    def whole(self) -> tuple[bool, bool, bool]:
        return (True, False, False)

    @property
    def deviation(self) -> float:
        """Standard deviation of the slice profile, in steps."""
        return self.width / (math.sqrt(12) if self.profile == "box" else math.sqrt(8 * math.log(2)))

    def make_operator(
        self, size: Sequence[int], seed: int | None, device: torch.device | str
    ) -> Pooling | SliceProfiles:
        if self.blocks is not None:
            return Pooling(self.blocks)
        return SliceProfiles(self.step, self.width, self.profile)

    def drawn(self, random: np.random.Generator) -> SliceStack:
        """Draw a measurement: step, width, profile, and in one of five cases a gain."""
        found: dict[str, Any] = {
            "step": int(random.integers(self.steps[0], self.steps[1] + 1)),
            "width": float(random.uniform(*self.widths)),
            "profile": "gaussian" if random.random() < 0.4 else "box",
            "gain": self.gains if random.random() < 0.2 else 0.0,
        }
        if found["profile"] == "box" and random.random() < 0.4:
            found["width"] = 1.0  # what is assumed of most scans
        return self.model_copy(update=found)

    def describe(self, depth: int, first: int, device: torch.device | str) -> Tensor:
        """Return for each voxel along z its place within its slice's step, then two constant channels.

        Float32 ``[3, depth]``: the place, -1 to 1 from border to border; log2(step) / 2 - 1; four times the
        profile's standard deviation in steps, minus 1.2. ``first`` is the first voxel's number in the volume.
        """
        place = (torch.arange(depth, device=device) + first) % self.step
        rows = (2 * place.float() + 1) / self.step - 1
        same = torch.tensor([math.log2(self.step) / 2 - 1, 4 * self.deviation - 1.2], device=device)
        return torch.stack([rows, *same[:, None].expand(2, depth)])

    def _measure(self, target: Tensor, seed: int | None) -> tuple[LinearOperator | None, Tensor]:
        operator, measured = super()._measure(target, seed)
        if self.gain:
            generator = torch.Generator().manual_seed((seed or 0) + 1)
            gains = 1 + self.gain * torch.randn(measured.shape[2], generator=generator)
            # of the intensity, which is -1 where there is no signal
            measured = (measured + 1) * gains.to(measured).reshape(-1, 1, 1) - 1
        return operator, measured
