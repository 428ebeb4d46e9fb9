"""Normalisation of intensities, and the outliers that must not decide it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from scorefusion.errors import ScoreFusionError, unknown_name

INTENSITIES = ("minmax", "robust")

Values = TypeVar("Values", np.ndarray, Tensor)


@dataclass(frozen=True)
class Outliers:
    """Values of an image so far from the others that its normalisation leaves them out.

    Padding and negative spikes are below 0 and far below the rest, below what CT can measure, or below values
    that are otherwise all at least 0; hot and saturated voxels and bright padding are far above the rest. An
    ordinary image has none.
    """

    lo: float  #: smallest value that counts
    hi: float  #: greatest value that counts
    below: int  #: number of voxels below ``lo``
    above: int  #: number of voxels above ``hi``
    least: float  #: smallest value of all
    most: float  #: greatest value of all

    @classmethod
    def of(cls, values: np.ndarray, kind: str = "robust") -> Outliers:
        """Find them in finite values of any shape.

        For ``minmax`` values slightly below a background of 0 count: they hardly move its range. For
        ``robust`` they do not, since the background is recognised as the smallest value.
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
        """Findings, each with what to do about it, for a message that begins with the image's name."""
        found = []
        depth, span = self.lo - self.least, self.hi - self.lo
        if self.below and depth > _SLIGHT * span:
            where = "far below" if depth > _FAR * span else "below"
            ends = f"down to {self.least:.5g}, where the rest begins at {self.lo:.5g}"
            found.append((self.below, where, ends, "Set padding to the value of the background."))
        if self.above:
            ends = f"up to {self.most:.5g}, where the rest ends at {self.hi:.5g}"
            found.append((self.above, "far above", ends, "Check whether it is saturated or damaged there."))
        kept = "they are kept as they are and do not count in its normalisation"
        return tuple(
            (f"has {count:,} voxel{'s' * (count != 1)} {where} the rest ({ends}): {kept}", fix)
            for count, where, ends, fix in found
        )

    def kept(self, values: np.ndarray) -> np.ndarray:
        """Return the values that count, ``[n]``; the array itself where all do."""
        return values[(values >= self.lo) & (values <= self.hi)] if self else values

    def limited(self, volume: Values) -> Values:
        """Return the volume with outliers moved to the nearest value that counts."""
        result: Any = volume.clip(self.lo, self.hi) if self else volume
        return result


_SAMPLED = 2**17
_FAR = 1.5  #: an outlier is this many times the range of all other values away from them, at least
_PADDED = 5.0  #: padding is this many times the range of all others below them: a background is not so far
_HOT = 98  #: percentile of the foreground above which voxels may be hot
_LIMITS = (*(2.0**bits - 1 for bits in range(8, 17)), 2.0**31 - 1, 2.0**32 - 1)
_PLATEAU = 2.0  #: any other greatest value is saturation this many times the range of the rest above it
_SATURATED = 0.3
_SLIGHT = 0.02  #: values below a background of 0 are no finding up to this share of the range
_VACUUM, _PADDING = -1100.0, -1200.0  #: Hounsfield units: no scanner gives this of air; below is CT's padding


def _least(array: np.ndarray, sample: np.ndarray, least: float) -> float:
    """Return the smallest value that is neither padding nor a spike, given a negative smallest value."""
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
    """Return the greatest value that is neither hot, saturated nor padding."""
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
    """Return the smallest value from 0 up, if those below 0 are all padding of one value, or very few."""
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
    """The value of a background between those of tissue ``[D, H, W]``, as 0 is after z-scoring; else None.

    At least six of the eight corners and 5% of all voxels have it, and at least 1% of the voxels are clearly
    darker and 1% brighter.
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
    """A linear map of intensities that takes ``lo`` to -1 and ``hi`` to 1; it clips nothing and inverts."""

    lo: float  #: in the image's units
    hi: float  #: likewise, and greater

    def __post_init__(self) -> None:
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

        Raises ScoreFusionError for an unknown kind, or a volume without two different values.
        """
        if kind not in INTENSITIES:
            raise unknown_name("intensity", kind, INTENSITIES)
        array = on_host(values)
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


def on_host(values: np.ndarray | Tensor) -> np.ndarray:
    """Return an array of a tensor on any device; an array as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
