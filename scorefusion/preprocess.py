"""From voxels to what the networks see: normalised intensities, the residual's base, the foreground box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scorefusion.degradations.base import base_volume
from scorefusion.diffusion.consistency import block_mean, upsample_blocks
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.models.config import ModelConfig

INTENSITIES = ("minmax", "robust")

Values = TypeVar("Values", np.ndarray, Tensor)


@dataclass(frozen=True)
class Intensity:
    """The linear map of intensities that takes ``lo`` to -1 and ``hi`` to 1; nothing is clipped: it inverts.

    Attributes:
        lo: in the image's units.
        hi: in the image's units, more than ``lo``.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        """Refuse a map that does not invert."""
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.hi > self.lo):
            raise ScoreFusionError(f"intensities need finite lo < hi, got lo={self.lo}, hi={self.hi}")

    @classmethod
    def of(cls, values: np.ndarray | Tensor, kind: str) -> Intensity:
        """Measure a volume.

        Args:
            values: any shape, in the image's units, finite. For super-resolution, the low-resolution input.
            kind: ``minmax`` (the paper's: the least and the greatest value), or ``robust``: percentiles 0.1
                and 99.9 of the voxels above the least value, which is taken for background; ``minmax`` where
                these coincide.

        Raises:
            ScoreFusionError: for an unknown kind, or a volume without two different values.
        """
        if kind not in INTENSITIES:
            raise unknown_name("intensity", kind, INTENSITIES)
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        lo, hi = float(array.min()), float(array.max())
        if not hi > lo:
            raise ScoreFusionError(f"every voxel is {lo:g}; a volume needs two different intensities")
        if kind == "robust":
            inner = np.percentile(array[array > lo].astype(np.float64), (0.1, 99.9))
            if inner[1] > inner[0]:
                lo, hi = float(inner[0]), float(inner[1])
        return cls(lo, hi)

    @property
    def half_range(self) -> float:
        """Image units for one unit of normalised intensity."""
        return 0.5 * (self.hi - self.lo)

    def normalise(self, values: Values) -> Values:
        """Image units to normalised intensity, same shape and kind."""
        result: Any = (values - self.lo) / self.half_range - 1.0
        return result

    def denormalise(self, values: Values) -> Values:
        """Normalised intensity to image units, same shape and kind."""
        result: Any = (values + 1.0) * self.half_range + self.lo
        return result


@dataclass(frozen=True)
class Box:
    """A box of voxels ``[start, stop)`` of a volume, each (z, y, x)."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int, int]:
        """(depth, height, width)."""
        z, y, x = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def index(self) -> tuple[Any, ...]:
        """Index of the box into ``[..., D, H, W]``."""
        return (..., *(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True)))

    def coarser(self, factor: int) -> Box:
        """The same box on the grid whose voxels are this one's ``factor``³ blocks; the ends are multiples."""
        start, stop = (tuple(n // factor for n in ends) for ends in (self.start, self.stop))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    @classmethod
    def whole(cls, size: Sequence[int]) -> Box:
        """The box that is the whole volume of ``size`` (D, H, W)."""
        return cls((0, 0, 0), (int(size[0]), int(size[1]), int(size[2])))


def foreground_box(volume: Tensor, *, threshold: float = -0.95, margin: int = 8, multiple: int = 1) -> Box:
    """The smallest aligned box that holds every voxel above a threshold, and a margin.

    Args:
        volume: ``[B, C, D, H, W]``, normalised; a voxel counts if any item or channel exceeds the threshold.
        threshold: normalised intensity; -0.95 is 2.5% of the way from black to white.
        margin: voxels added on every side.
        multiple: the start is rounded down and the stop up to multiples of this, within the volume.

    Returns:
        The box; the whole volume if nothing exceeds the threshold.
    """
    full = volume.shape[2:]
    above = (volume > threshold).any(dim=0).any(dim=0)
    start, stop = [], []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        places = torch.nonzero(above.any(dim=others[1]).any(dim=others[0])).flatten()
        if not len(places):
            return Box.whole(full)
        first, last = int(places[0]) - margin, int(places[-1]) + 1 + margin
        start.append(max(0, first // multiple * multiple))
        stop.append(min(full[axis], -(-last // multiple) * multiple))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


@dataclass(frozen=True, eq=False)
class Prepared:
    """What sampling needs, on the output's whole grid and in normalised intensity.

    Attributes:
        condition: ``[1, C, D, H, W]`` float32, the network's condition channels.
        base: ``[1, 1, D, H, W]``, what ``residual.scale`` times the sampled residual is added to.
        outside: ``[1, 1, D, H, W]``, the result where nothing is sampled: the base, made consistent.
        measured: ``[1, 1, d, h, w]``, the block means the residual must have; None where they are zero or
            nothing is known of them.
        intensity: of the first condition, and so of the result.
    """

    condition: Tensor
    base: Tensor
    outside: Tensor
    measured: Tensor | None
    intensity: Intensity


def prepare_conditions(volumes: Sequence[Tensor], config: ModelConfig) -> Prepared:
    """Normalise the conditions and bring them to the output's grid.

    Each is normalised by its own intensities, as it came. The first gives the base. For super-resolution the
    others may be on its grid, and are enlarged like it, or already on the output's.

    Args:
        volumes: ``[1, 1, d, h, w]`` each, in image units, as ``config.conditions`` names them.
        config: the model.

    Raises:
        ScoreFusionError: for a volume without contrast.
    """
    kind, factor = config.residual.base, config.degradation.factor
    intensities = [Intensity.of(volume, config.intensity) for volume in volumes]
    scaled = [map_.normalise(volume.float()) for map_, volume in zip(intensities, volumes, strict=True)]
    first = scaled[0]
    base = base_volume(first, kind, factor)
    fine = [volume if volume.shape == base.shape else base_volume(volume, kind, factor) for volume in scaled]
    outside, measured = base, None
    if config.degradation.kind == "block-mean" and kind == "trilinear":
        short = first - block_mean(base, factor)
        outside = base + upsample_blocks(short, factor)
        measured = short / config.residual.scale
    return Prepared(torch.cat(fine, dim=1), base, outside, measured, intensities[0])
