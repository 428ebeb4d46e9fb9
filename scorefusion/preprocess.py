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
from scorefusion.degradations.inpainting import Inpainting
from scorefusion.degradations.kspace import KSpace
from scorefusion.degradations.make import make_operator
from scorefusion.degradations.operator import Operator
from scorefusion.degradations.pooling import Pooling
from scorefusion.diffusion.consistency import Factor, block_edges
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

    def coarser(self, factor: Factor) -> Box:
        """The same box on the grid whose voxels are blocks of this one; the ends are multiples of it."""
        edges = block_edges(factor)
        start, stop = (
            tuple(n // edge for n, edge in zip(ends, edges, strict=True)) for ends in (self.start, self.stop)
        )
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def whole_along(self, axes: Sequence[bool], size: Sequence[int]) -> Box:
        """The same box, but all of a volume of ``size`` along the axes, of z, y and x, that are true."""
        start = [0 if whole else first for whole, first in zip(axes, self.start, strict=True)]
        stop = [n if whole else last for whole, last, n in zip(axes, self.stop, size, strict=True)]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    @classmethod
    def whole(cls, size: Sequence[int]) -> Box:
        """The box that is the whole volume of ``size`` (D, H, W)."""
        return cls((0, 0, 0), (int(size[0]), int(size[1]), int(size[2])))


def foreground_box(volume: Tensor, *, threshold: float = -0.95, margin: int = 8, multiple: Factor = 1) -> Box:
    """The smallest aligned box that holds every voxel above a threshold, and a margin.

    Args:
        volume: ``[B, C, D, H, W]``, normalised; a voxel counts if any item or channel exceeds the threshold.
        threshold: normalised intensity; -0.95 is 2.5% of the way from black to white.
        margin: voxels added on every side.
        multiple: the start is rounded down and the stop up to multiples of this, one number or (z, y, x),
            within the volume.

    Returns:
        The box; the whole volume if nothing exceeds the threshold.
    """
    full, multiples = volume.shape[2:], block_edges(multiple)
    above = (volume > threshold).any(dim=0).any(dim=0)
    start, stop = [], []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        places = torch.nonzero(above.any(dim=others[1]).any(dim=others[0])).flatten()
        if not len(places):
            return Box.whole(full)
        first, last = int(places[0]) - margin, int(places[-1]) + 1 + margin
        whole = multiples[axis]
        start.append(max(0, first // whole * whole))
        stop.append(min(full[axis], -(-last // whole) * whole))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def sampling_box(condition: Tensor, config: ModelConfig) -> Box:
    """The box around the foreground that a model can sample by itself.

    Its ends are whole blocks and whole patches, and it is all of the volume along axes that the measurement
    mixes.

    Args:
        condition: ``[1, C, D, H, W]``, normalised, on the output's grid.
        config: the model.
    """
    multiples = [math.lcm(factor, config.multiple) for factor in config.degradation.factors]
    box = foreground_box(condition, multiple=multiples)
    return box.whole_along(config.degradation.whole, condition.shape[2:])


def least_box(volumes: Sequence[Tensor], config: ModelConfig) -> Box | None:
    """A box that is surely part of :func:`sampling_box`'s, from images as they were read.

    Every block above the threshold holds a voxel above it, so no volume on the output's grid is needed.

    Args:
        volumes: ``[1, 1, d, h, w]`` each, in image units; those on the first one's grid count.
        config: the model.

    Returns:
        The box on the output's grid; None for measurements that are neither of blocks nor of nothing.
    """
    if not (config.degradation.coarse or config.degradation.kind == "none"):
        return None
    factors, full = config.degradation.factors, volumes[0].shape[2:]
    alike = [volume for volume in volumes if volume.shape[2:] == full]
    scaled = [Intensity.of(volume, config.intensity).normalise(volume) for volume in alike]
    box = foreground_box(torch.cat(scaled, dim=1), margin=0)
    start, stop = (
        [n * factor for n, factor in zip(ends, factors, strict=True)] for ends in (box.start, box.stop)
    )
    fine = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    whole = [n * factor for n, factor in zip(full, factors, strict=True)]
    return fine.whole_along(config.degradation.whole, whole)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What sampling needs, on the output's whole grid and in normalised intensity.

    Attributes:
        condition: ``[1, C, D, H, W]`` float32, the network's condition channels.
        base: ``[1, 1, D, H, W]``, what ``residual.scale`` times the sampled residual is added to.
        outside: ``[1, 1, D, H, W]``, the result where nothing is sampled: the base, made consistent.
        intensity: of the first condition, and so of the result.
        operator: what was measured of the result, on the whole grid; None where nothing is known.
    """

    condition: Tensor
    base: Tensor
    outside: Tensor
    intensity: Intensity
    operator: Operator | None = None

    def to(self, device: torch.device | str) -> Prepared:
        """The same with all volumes on a device; an operator's masks follow the volumes that it measures."""
        volumes = (self.condition, self.base, self.outside)
        condition, base, outside = (volume.to(device) for volume in volumes)
        return Prepared(condition, base, outside, self.intensity, self.operator)


def prepare_conditions(
    volumes: Sequence[Tensor], config: ModelConfig, *, operator: Operator | None = None
) -> Prepared:
    """Normalise the conditions and bring them to the output's grid.

    Each is normalised by its own intensities, as it came. The first gives the base: it is what was measured,
    where that is a coarser image, or else the image that the pseudo-inverse makes of it, which is measured
    again. The others may be on its grid, and are enlarged like it, or already on the output's.

    Args:
        volumes: ``[1, 1, d, h, w]`` each, in image units, as ``config.conditions`` names them.
        config: the model.
        operator: what was measured of the first, instead of what ``config.degradation`` says: another mask,
            say, or an object of deepinv's.

    Raises:
        ScoreFusionError: for a volume without contrast, or of a size that cannot have been measured.
    """
    if operator is None:
        factors = config.degradation.factors
        size = [n * factor for n, factor in zip(volumes[0].shape[2:], factors, strict=True)]
        operator = make_operator(config.degradation, size, device=volumes[0].device)
    # What an image holds where nothing is known must not decide how it is normalised.
    known = volumes[0][..., operator.known] if isinstance(operator, Inpainting) else volumes[0]
    intensities = [Intensity.of(volume, config.intensity) for volume in (known, *volumes[1:])]
    scaled = [map_.normalise(volume.float()) for map_, volume in zip(intensities, volumes, strict=True)]
    return on_output_grid(scaled, config, intensities[0], operator)


def on_output_grid(
    scaled: Sequence[Tensor], config: ModelConfig, intensity: Intensity, operator: Operator | None
) -> Prepared:
    """Bring normalised conditions to the output's grid, as :func:`prepare_conditions` does.

    Args:
        scaled: ``[1, 1, d, h, w]`` each; on the meta device too, where nothing is computed.
        config: the model.
        intensity: of the first.
        operator: what was measured of the first; None where nothing is known.
    """
    kind, degradation = config.residual.base, config.degradation
    factors = degradation.factors
    first = measured = scaled[0]
    if operator is not None and not degradation.coarse:
        measured = operator.A(first)
        first = operator.A_dagger(measured)
    base = outside = base_volume(first, kind, factors, operator)
    if operator is not None and not _agrees(operator, kind, degradation.coarse):
        outside = base - operator.A_dagger(operator.A(base) - measured)
    others = [
        volume if volume.shape == base.shape else base_volume(volume, kind, factors, operator)
        for volume in scaled[1:]
    ]
    return Prepared(torch.cat([base, *others], dim=1), base, outside, intensity, operator)


def _agrees(operator: Operator, kind: str, coarse: bool) -> bool:
    """Whether a base measures as the first condition does, to rounding."""
    if coarse:
        exact = ("trilinear+consistency", "pseudo-inverse", *(["nearest"] * isinstance(operator, Pooling)))
        return kind in exact
    return isinstance(operator, KSpace | Inpainting)
