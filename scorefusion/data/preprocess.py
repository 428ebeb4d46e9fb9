"""From images to what the networks see: normalised conditions, the residual's base, the box to sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.data.intensity import Intensity, Outliers, background_within, on_host
from scorefusion.degradations import (
    Factor,
    LinearOperator,
    Operator,
    Projection,
    base_volume,
    block_edges,
    linear_operator,
)
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.models.config import DomainConfig, ModelConfig
from scorefusion.optional import need

#: interpolations that super-resolution is compared with
BASELINES = ("nearest", "trilinear", "trilinear+consistency", "b-spline")

Findings = tuple[tuple[str, str], ...]  #: what is wrong with an image's intensities, each with what to do


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
        edges = np.array(block_edges(factor))
        return Box.between(self.start // edges, self.stop // edges)

    def whole_along(self, axes: Sequence[bool], size: Sequence[int]) -> Box:
        """The same box, but all of a volume of ``size`` along the axes, of z, y and x, that are true."""
        return Box.between(np.where(axes, 0, self.start), np.where(axes, size, self.stop))

    @classmethod
    def between(cls, start: Sequence[int] | np.ndarray, stop: Sequence[int] | np.ndarray) -> Box:
        """The box of two corners (z, y, x) of any kind."""
        (a, b, c), (d, e, f) = (map(int, corner) for corner in (start, stop))
        return cls((a, b, c), (d, e, f))

    @classmethod
    def whole(cls, size: Sequence[int]) -> Box:
        """The box that is the whole volume of ``size`` (D, H, W)."""
        return cls.between((0, 0, 0), size)


def foreground_box(
    volume: Tensor,
    *,
    threshold: float = -0.95,
    margin: int = 8,
    multiple: Factor = 1,
    levels: Sequence[float | None] = (),
) -> Box:
    """Return the smallest aligned box of every voxel above a threshold, and a margin; all if none is above.

    Args:
        volume: ``[B, C, D, H, W]``, normalised; a voxel counts if any item or channel exceeds the threshold.
        threshold: normalised intensity; -0.95 is 2.5% of the way from black to white.
        margin: voxels added on every side.
        multiple: the start is rounded down and the stop up to multiples of this, one number or (z, y, x),
            within the volume.
        levels: value of each channel's background where that is not its darkest, as it is after z-scoring:
            voxels count that differ from it by as much as ``threshold`` from -1.
    """
    full, multiples = volume.shape[2:], block_edges(multiple)
    shown = volume > threshold
    for channel, level in enumerate(levels):
        if level is not None:
            shown[:, channel] = (volume[:, channel] - level).abs() > 1 + threshold
    above = shown.any(dim=0).any(dim=0)
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
    return Box.between(start, stop)


def sampling_box(condition: Tensor, config: ModelConfig, levels: Sequence[float | None] = ()) -> Box:
    """Return the box around the foreground that a model can sample by itself.

    Its ends are whole blocks and whole patches, and it is all of the volume along axes that the measurement
    mixes. ``condition`` is ``[1, C, D, H, W]``, normalised, on the output's grid; ``levels`` are as for
    :func:`foreground_box`.
    """
    box = foreground_box(condition, multiple=config.multiples, levels=levels)
    return box.whole_along(config.degradation.whole, condition.shape[2:])


def least_box(volumes: Sequence[Tensor], config: ModelConfig) -> Box | None:
    """Return a box that :func:`sampling_box`'s surely contains, from images as they were read.

    Every block above the threshold holds a voxel above it, so no volume on the output's grid is needed. Of
    the volumes ``[1, 1, d, h, w]`` in image units, those on the first one's grid count. The box is on the
    output's grid; None for measurements that are neither of blocks nor of nothing.
    """
    measurement, full = config.degradation, volumes[0].shape[2:]
    if measurement.measures and not measurement.coarse:
        return None
    alike = [volume for volume in volumes if volume.shape[2:] == full]
    scaled = [Intensity.of(volume, config.intensity).normalise(volume) for volume in alike]
    box = foreground_box(torch.cat(scaled, dim=1), margin=0)
    fine = Box(measurement.grid(box.start), measurement.grid(box.stop))
    return fine.whole_along(measurement.whole, measurement.grid(full))


@dataclass(frozen=True, eq=False)
class Prepared:
    """What sampling needs, on the output's whole grid and in normalised intensity."""

    condition: Tensor  #: ``[1, C, D, H, W]`` float32, the network's condition channels
    base: Tensor  #: ``[1, 1, D, H, W]``, what ``residual.scale`` times the sampled residual is added to
    outside: Tensor  #: ``[1, 1, D, H, W]``, the result where nothing is sampled: the base, made consistent
    intensity: Intensity  #: of the first condition, and so of the result
    operator: LinearOperator | None = None  #: what was measured, on the whole grid; None for nothing
    #: bool ``[1, 1, d, h, w]`` on the first condition's own grid: voxels whose value the result has
    #: everywhere: outliers, and a background that is known; None where there are none
    held: Tensor | None = None
    #: normalised value of each condition's background where that is not its darkest; else None
    levels: tuple[float | None, ...] = ()
    found: tuple[Findings, ...] = ()  #: by condition, what is wrong and what to do

    def to(self, device: torch.device | str) -> Prepared:
        """The same with all volumes on a device; an operator's masks follow the volumes that it measures."""
        moved = {name: getattr(self, name).to(device) for name in ("condition", "base", "outside")}
        held = None if self.held is None else self.held.to(device)
        return replace(self, **moved, held=held)

    def projection(self, config: ModelConfig, box: Box) -> Projection | None:
        """The projection that makes a residual in the box agree with the measurement.

        None where nothing is measured, or where ``config.sampling`` does without. Raises ScoreFusionError if
        the box leaves out voxels that the measurement mixes with those inside.
        """
        if self.operator is None or not config.sampling.consistency:
            return None
        size = self.base.shape[2:]
        if box != box.whole_along(config.degradation.whole, size):
            mixed = "mixes voxels over whole slices or the whole volume, so the box must be whole there"
            kind = config.degradation.kind
            raise ScoreFusionError(f"a measurement of kind {kind} {mixed}; got {box} of {list(size)}")
        inside = self.operator.inside(box.index)
        if self.outside is self.base:
            return inside.project()
        return inside.project(inside.A((self.outside - self.base)[box.index]) / config.residual.scale)


def _normalised(
    volume: Tensor,
    config: ModelConfig,
    domain: DomainConfig,
    known: Tensor | None = None,
    direct: bool = True,
) -> tuple[Tensor, Intensity, Tensor | None, float | None, Findings]:
    """Normalise a condition in image units; ``known`` are the values that count, where not all do.

    ``direct`` says that voxels stand for themselves, so that those of no meaning can be set aside. Returns
    the volume, its intensity, which voxels are held, the background's level and what is wrong.
    """
    array = on_host(volume if known is None else known)
    outliers = Outliers.of(array, config.intensity)
    counted, found = outliers.kept(array), outliers.texts
    if not direct:
        intensity = Intensity.of(counted, config.intensity, outliers=False)
        return intensity.normalise(volume.float()), intensity, None, None, found
    level = background_within(array[0, 0], outliers) if known is None else None
    plain = outliers.limited(volume)
    if level is not None and domain.background == "zero":
        share = float((array == level).mean())
        text = f"has a background of {level:.5g} ({share:.0%} of its voxels) between its darkest and "
        text += f"brightest tissue, and '{config.name}' was made for one that is darker than all tissue"
        found += ((text, "It is taken for the darkest value while sampling, and put back."),)
        counted = counted[counted != level]
        plain = torch.where(plain == level, float(counted.min()), plain)
        level = None
    intensity = Intensity.of(counted, config.intensity, outliers=False)
    held = plain != volume if found or outliers else None
    level = None if level is None else float(intensity.normalise(np.float64(level)))
    return intensity.normalise(plain.float()), intensity, held, level, found


def prepare_conditions(
    volumes: Sequence[Tensor], config: ModelConfig, *, operator: Operator | None = None
) -> Prepared:
    """Normalise the conditions and bring them to the output's grid.

    Each is normalised by its own intensities, as it came. The first gives the base: it is what was measured,
    where that is a coarser image, or else the image that the pseudo-inverse makes of it, which is measured
    again. The others may be on its grid, and are enlarged like it, or already on the output's.

    The volumes are ``[1, 1, d, h, w]``, in image units, as ``config.conditions`` names them. ``operator`` is
    what was measured of the first, instead of what ``config.degradation`` says: another mask, say, or an
    object of deepinv's. Raises ScoreFusionError for a volume without contrast, or of a size that cannot have
    been measured.
    """
    if operator is None:
        size = config.degradation.grid(volumes[0].shape[2:])
        measured = config.degradation.operator(size, device=volumes[0].device)
    else:
        measured = linear_operator(operator)
    # What an image holds where nothing is known must not decide how it is normalised.
    mask = None if measured is None else measured.known
    known = None if mask is None else volumes[0][..., mask]
    pooled = measured is not None and measured.blocks is not None
    domains = [config.domain.get(name, DomainConfig()) for name in config.conditions]
    direct = measured is None or pooled
    first = _normalised(volumes[0], config, domains[0], known, direct)
    others = zip(volumes[1:], domains[1:], strict=False)
    normalised = [first, *(_normalised(volume, config, domain) for volume, domain in others)]
    scaled, (intensity, *_), (held, *_), levels, found = zip(*normalised, strict=True)
    if pooled and domains[0].background == "zero" and domains[0].intensity == "non-negative":
        # Where the mean of values of 0 and more is 0, all of them are.
        zero = volumes[0] == 0
        held = zero if held is None else held | zero
    prepared = on_output_grid(scaled, config, intensity, measured)
    return replace(prepared, held=held, levels=levels, found=found)


def on_output_grid(
    scaled: Sequence[Tensor], config: ModelConfig, intensity: Intensity, operator: LinearOperator | None
) -> Prepared:
    """Bring normalised conditions ``[1, 1, d, h, w]`` to the output's grid; see :func:`prepare_conditions`.

    They may be on the meta device, where nothing is computed. ``intensity`` is the first one's, and
    ``operator`` is what was measured of it; None where nothing is known.
    """
    kind, degradation = config.residual.base, config.degradation
    factors = degradation.factors
    first = measured = scaled[0]
    if operator is not None and not degradation.coarse:
        measured = operator.A(first)
        first = operator.A_dagger(measured)
    base = outside = base_volume(first, kind, factors, operator)
    if operator is not None and not degradation.base_agrees(kind, operator):
        outside = base - operator.A_dagger(operator.A(base) - measured)
    others = [
        volume if volume.shape == base.shape else base_volume(volume, kind, factors, operator)
        for volume in scaled[1:]
    ]
    return Prepared(torch.cat([base, *others], dim=1), base, outside, intensity, operator)


def interpolate(volume: Tensor, method: str, factor: Factor, operator: Operator | None = None) -> Tensor:
    """Enlarge a volume ``factor`` times along each axis; one number, or (z, y, x).

    The method is ``b-spline`` (cubic, interpolating, by scipy), or a base of :func:`base_volume`, for which
    ``operator`` is what was measured; means of blocks if None. Raises ScoreFusionError for an unknown method,
    or ``b-spline`` without scipy.

    Args:
        volume: ``[B, C, d, h, w]``, any units.

    Returns:
        ``[B, C, d·r, h·r, w·r]``, the input's dtype. Fine voxel j lies at coarse (j + 1/2)/r - 1/2.
    """
    if method not in (*BASELINES, "pseudo-inverse"):
        raise unknown_name("baseline", method, BASELINES)
    if method != "b-spline":
        return base_volume(volume, method, factor, operator)
    ndimage = need("scipy.ndimage", "b-spline interpolation")
    factors = block_edges(factor)
    if max(factors) == 1:
        return volume.clone()
    # One volume at a time: a spline over all five axes would weigh 4^5 coefficients a voxel, not 4^3.
    fine = [
        ndimage.zoom(one.astype("float64"), factors, order=3, mode="nearest", grid_mode=True)
        for one in volume.detach().flatten(0, 1).cpu().numpy()
    ]
    shape = (*volume.shape[:2], *fine[0].shape)
    return torch.from_numpy(np.stack(fine).reshape(shape)).to(volume)
