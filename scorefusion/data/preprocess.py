"""From voxels to what the networks see: normalised intensities, the residual's base, the foreground box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

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

INTENSITIES = ("minmax", "robust")

Values = TypeVar("Values", np.ndarray, Tensor)


@dataclass(frozen=True)
class Outliers:
    """Which values of an image are so far from all others that they must not decide its normalisation.

    Padding and negative spikes are below 0 and far below the rest, below what CT can measure, or below values
    that all others keep from 0 up; hot and saturated voxels and bright padding are far above the rest. Of an
    ordinary image nothing is.

    Attributes:
        lo: the least value that counts.
        hi: the greatest value that counts.
        below: number of voxels below ``lo``.
        above: number of voxels above ``hi``.
        least: of all values.
        most: of all values.
    """

    lo: float
    hi: float
    below: int
    above: int
    least: float
    most: float

    @classmethod
    def of(cls, values: np.ndarray, kind: str = "robust") -> Outliers:
        """Look for them in values of any shape, finite.

        For ``minmax`` values slightly below a background of 0 count: they hardly move its range. For
        ``robust`` they do not, since the background is known by being the least value.
        """
        array = values.reshape(-1)
        least, most = float(array.min()), float(array.max())
        sample = array[:: max(1, len(array) // _SAMPLED)]
        lo = _least(array, sample, least) if least < 0 else least
        hi = _greatest(array, sample[sample > lo], lo, most, _at_corners(values, most))
        if kind == "minmax" and lo - least <= _SLIGHT * (hi - lo):
            lo = least
        below = int(np.count_nonzero(array < lo)) if lo > least else 0
        above = int(np.count_nonzero(array > hi)) if hi < most else 0
        return cls(lo, hi, below, above, least, most)

    def __bool__(self) -> bool:
        return bool(self.below or self.above)

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """What was found and what to do about it, for a message that begins with the image's name."""
        kept = "they are kept as they are and do not count in its normalisation"
        found = []
        depth, span = self.lo - self.least, self.hi - self.lo
        if self.below and depth > _SLIGHT * span:
            far = "far " if depth > _FAR * span else ""
            where = f"down to {self.least:.5g}, where the rest begins at {self.lo:.5g}"
            fix = "Set padding to the value of the background."
            found.append((f"has {_voxels(self.below)} {far}below the rest ({where}): {kept}", fix))
        if self.above:
            where = f"up to {self.most:.5g}, where the rest ends at {self.hi:.5g}"
            fix = "Check whether it is saturated or damaged there."
            found.append((f"has {_voxels(self.above)} far above the rest ({where}): {kept}", fix))
        return tuple(found)

    def kept(self, values: np.ndarray) -> np.ndarray:
        """The values that count, ``[n]``; the array itself where all do."""
        return values[(values >= self.lo) & (values <= self.hi)] if self else values

    def limited(self, volume: Values) -> Values:
        """The volume with outliers moved to the nearest value that counts; itself where there are none."""
        result: Any = volume.clip(self.lo, self.hi) if self else volume
        return result


def _voxels(count: int) -> str:
    return f"{count:,} voxel{'s' * (count != 1)}"


_SAMPLED = 2**17
_FAR = 1.5
"""An outlier is this many times the range of all other values away from them, at least."""
_PADDED = 5.0
"""Padding is this many times the range of all other values below them: a background is not so far."""
_HOT = 98
"""Percentile of the foreground above which voxels may be hot."""
_LIMITS = (*(2.0**bits - 1 for bits in range(8, 17)), 2.0**31 - 1, 2.0**32 - 1)
_PLATEAU = 2.0
"""Voxels that share any other greatest value are saturated this many times the range of the rest above it."""
_SATURATED = 0.3
_SLIGHT = 0.02
"""Values below a background of 0 are no finding up to this share of the range."""
_VACUUM, _PADDING = -1100.0, -1200.0
"""Hounsfield units that no scanner gives of air, and below which a value is CT's padding."""


def _least(array: np.ndarray, sample: np.ndarray, least: float) -> float:
    """The least value that is neither padding nor a spike; negative ``least`` where there are none."""
    rest = sample[sample > least]
    if not rest.size:
        return least
    padded = bool(np.count_nonzero(sample == least) > 0.01 * sample.size)
    if (lowest := _of_magnitude(array, sample, padded)) is not None:
        return lowest
    low, high = (float(value) for value in np.percentile(rest, (5, 99.5)))
    if padded and least <= _PADDING and low >= _VACUUM and low - least > 0.2 * (high - low):
        return float(array[array >= _VACUUM].min())
    if padded and low - least > _PADDED * (high - low) > 0:
        return float(array[array > low - _FAR * (high - low)].min())
    if padded or low - least <= _FAR * (high - low):
        return least
    tail = np.sort(array[array <= low])
    after = np.append(tail[1:], array[array > low].min())
    far = np.flatnonzero((after - tail > _FAR * (high - after)) & (tail < 0))
    return float(after[far[-1]]) if far.size else least


def _greatest(array: np.ndarray, foreground: np.ndarray, lo: float, most: float, padded: bool) -> float:
    """The greatest value that is neither hot, saturated nor padding."""
    if (count := np.count_nonzero(foreground == most)) > 1:
        rest = foreground[foreground < most]
        times = _FAR if most in _LIMITS and not padded else _PLATEAU
        few = padded or count < _SATURATED * foreground.size
        if rest.size and few and _far_above(float(rest.max()), lo, most, times):
            array, foreground = array[array < most], rest
            most = float(array.max())
    if not foreground.size:
        return most
    high = float(np.percentile(foreground, _HOT))
    if not _far_above(high, lo, most):
        return most
    tail = np.sort(array[array > high])
    before = np.append(array[array <= high].max(), tail[:-1])
    far = np.flatnonzero(tail - before > _FAR * (before - lo))
    return float(before[far[0]]) if far.size else most


def _far_above(value: float, lo: float, most: float, times: float = _FAR) -> bool:
    return most - value > times * (value - lo) > 0


def _at_corners(values: np.ndarray, value: float) -> bool:
    """Whether two corners of a volume, or more, have a value."""
    if values.ndim < 3 or min(values.shape[-3:]) < 2:
        return False
    z, y, x = (n - 1 for n in values.shape[-3:])
    return bool(np.count_nonzero(values[..., ::z, ::y, ::x] == value) > 1)


def _of_magnitude(array: np.ndarray, sample: np.ndarray, padded: bool) -> float | None:
    """The least value from 0 up, if those below 0 are all padding of one value, or very few."""
    dark = np.count_nonzero(sample == 0) > 0.05 * sample.size
    if not (dark or padded):
        return None
    below, rest = array[array < 0], array[array >= 0]
    few = dark and below.size < 0.001 * array.size
    if not (few or (below == below[0]).all()) or not rest.size:
        return None
    lowest, highest = float(rest.min()), float(rest.max())
    return lowest if lowest < _SLIGHT * highest else None


def background_within(values: np.ndarray, outliers: Outliers) -> float | None:
    """The value of a background that lies between the tissue's, as 0 does after z-scoring.

    Args:
        values: ``[D, H, W]``, finite.
        outliers: theirs.

    Returns:
        The value that at least six of the eight corners and 5% of all voxels have, with at least 1% of the
        voxels clearly darker and 1% brighter; None where there is none such.
    """
    if values.ndim != 3 or min(values.shape) < 2:
        return None
    corners = values[:: values.shape[0] - 1, :: values.shape[1] - 1, :: values.shape[2] - 1]
    level = float(np.median(corners))
    margin = 0.025 * (outliers.hi - outliers.lo)
    if np.count_nonzero(corners == level) < 6 or not outliers.lo + margin < level < outliers.hi - margin:
        return None
    least = 0.01 * values.size
    enough = np.count_nonzero(values == level) > 5 * least
    darker = np.count_nonzero((values < level - margin) & (values >= outliers.lo))
    brighter = np.count_nonzero((values > level + margin) & (values <= outliers.hi))
    return level if enough and min(darker, brighter) > least else None


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
    def of(cls, values: np.ndarray | Tensor, kind: str, *, outliers: bool = True) -> Intensity:
        """Measure a volume.

        Args:
            values: any shape, in the image's units, finite. For super-resolution, the low-resolution input.
            kind: ``minmax`` (the paper's: the least and the greatest value), or ``robust``: percentiles 0.1
                and 99.9 of the voxels above the least value, which is taken for background; ``minmax`` where
                these coincide.
            outliers: leave :class:`Outliers` out.

        Raises:
            ScoreFusionError: for an unknown kind, or a volume without two different values.
        """
        if kind not in INTENSITIES:
            raise unknown_name("intensity", kind, INTENSITIES)
        array = _on_host(values)
        array = Outliers.of(array, kind).kept(array) if outliers else array
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


def foreground_box(
    volume: Tensor,
    *,
    threshold: float = -0.95,
    margin: int = 8,
    multiple: Factor = 1,
    levels: Sequence[float | None] = (),
) -> Box:
    """The smallest aligned box that holds every voxel above a threshold, and a margin.

    Args:
        volume: ``[B, C, D, H, W]``, normalised; a voxel counts if any item or channel exceeds the threshold.
        threshold: normalised intensity; -0.95 is 2.5% of the way from black to white.
        margin: voxels added on every side.
        multiple: the start is rounded down and the stop up to multiples of this, one number or (z, y, x),
            within the volume.
        levels: value of each channel's background where that is not its darkest, as it is after z-scoring:
            voxels count that differ from it by as much as ``threshold`` from -1.

    Returns:
        The box; the whole volume if nothing exceeds the threshold.
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
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def sampling_box(condition: Tensor, config: ModelConfig, levels: Sequence[float | None] = ()) -> Box:
    """The box around the foreground that a model can sample by itself.

    Its ends are whole blocks and whole patches, and it is all of the volume along axes that the measurement
    mixes.

    Args:
        condition: ``[1, C, D, H, W]``, normalised, on the output's grid.
        config: the model.
        levels: as for :func:`foreground_box`.
    """
    multiples = [math.lcm(factor, config.multiple) for factor in config.degradation.factors]
    box = foreground_box(condition, multiple=multiples, levels=levels)
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
    if config.degradation.measures and not config.degradation.coarse:
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
        held: bool ``[1, 1, d, h, w]`` on the first condition's own grid: voxels whose value the result has
            everywhere: outliers, and a background that is known; None where there are none.
        levels: normalised value of each condition's background where that is not its darkest; else None.
        found: by condition, what is wrong with its intensities, and what to do.
    """

    condition: Tensor
    base: Tensor
    outside: Tensor
    intensity: Intensity
    operator: LinearOperator | None = None
    held: Tensor | None = None
    levels: tuple[float | None, ...] = ()
    found: tuple[tuple[tuple[str, str], ...], ...] = ()

    def to(self, device: torch.device | str) -> Prepared:
        """The same with all volumes on a device; an operator's masks follow the volumes that it measures."""
        moved = {name: getattr(self, name).to(device) for name in ("condition", "base", "outside")}
        held = None if self.held is None else self.held.to(device)
        return replace(self, **moved, held=held)

    def projection(self, config: ModelConfig, box: Box) -> Projection | None:
        """The projection that makes a residual in the box agree with the measurement.

        Args:
            config: the model.
            box: all of the volume along the axes of ``config.degradation.whole``.

        Returns:
            None where nothing is measured, or where ``config.sampling`` does without.

        Raises:
            ScoreFusionError: if the box leaves out voxels that the measurement mixes with those inside.
        """
        if self.operator is None or not config.sampling.consistency:
            return None
        size = self.base.shape[2:]
        if box != box.whole_along(config.degradation.whole, size):
            raise ScoreFusionError(
                f"a measurement of kind {config.degradation.kind} mixes voxels over whole slices or the "
                f"whole volume, so the box must be whole there; got {box} of {list(size)}"
            )
        inside = self.operator.inside(box.index)
        if self.outside is self.base:
            return inside.project()
        return inside.project(inside.A((self.outside - self.base)[box.index]) / config.residual.scale)


@dataclass(frozen=True, eq=False)
class _Normalised:
    """A condition as it came, normalised: ``[1, 1, d, h, w]``, and what of it is held."""

    volume: Tensor
    intensity: Intensity
    held: Tensor | None
    level: float | None
    found: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls, volume: Tensor, config: ModelConfig, domain: DomainConfig, known: Tensor | None, direct: bool
    ) -> _Normalised:
        """Normalise a condition.

        Args:
            volume: in image units.
            config: the model.
            domain: what the condition should be.
            known: the values that count, where not all do.
            direct: whether voxels stand for themselves, so that those of no meaning can be set aside.
        """
        array = _on_host(volume if known is None else known)
        outliers = Outliers.of(array, config.intensity)
        level = background_within(array[0, 0], outliers) if known is None else None
        counted, found, held = outliers.kept(array), outliers.texts, None
        if not direct:
            intensity = Intensity.of(counted, config.intensity, outliers=False)
            return cls(intensity.normalise(volume.float()), intensity, None, None, found)
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
        if found or outliers:
            held = plain != volume
        level = None if level is None else float(intensity.normalise(np.float64(level)))
        return cls(intensity.normalise(plain.float()), intensity, held, level, found)


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
        measured = config.degradation.operator(size, device=volumes[0].device)
    else:
        measured = linear_operator(operator)
    # What an image holds where nothing is known must not decide how it is normalised.
    mask = None if measured is None else measured.known
    known = None if mask is None else volumes[0][..., mask]
    pooled = measured is not None and measured.blocks is not None
    domains = [config.domain.get(name, DomainConfig()) for name in config.conditions]
    normalised = [
        _Normalised.of(
            volume, config, domain, known if first else None, not first or measured is None or pooled
        )
        for volume, domain, first in zip(volumes, domains, (True, *[False] * len(volumes)), strict=False)
    ]
    held = normalised[0].held
    if pooled and domains[0].background == "zero" and domains[0].intensity == "non-negative":
        # Where the mean of values of 0 and more is 0, all of them are.
        zero = volumes[0] == 0
        held = zero if held is None else held | zero
    scaled = [each.volume for each in normalised]
    prepared = on_output_grid(scaled, config, normalised[0].intensity, measured)
    levels, found = (tuple(getattr(each, name) for each in normalised) for name in ("level", "found"))
    return replace(prepared, held=held, levels=levels, found=found)


def on_output_grid(
    scaled: Sequence[Tensor], config: ModelConfig, intensity: Intensity, operator: LinearOperator | None
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
    if operator is not None and not degradation.base_agrees(kind, operator):
        outside = base - operator.A_dagger(operator.A(base) - measured)
    others = [
        volume if volume.shape == base.shape else base_volume(volume, kind, factors, operator)
        for volume in scaled[1:]
    ]
    return Prepared(torch.cat([base, *others], dim=1), base, outside, intensity, operator)


def _on_host(values: np.ndarray | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
