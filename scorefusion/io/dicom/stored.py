"""Floats as 16-bit integers: rescaling that is exact in DICOM's decimal strings."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np

from scorefusion.errors import ScoreFusionError

_WINDOW = (0.5, 99.5)  # percentiles
_SAMPLED = 100  # voxels along each axis that the window is taken from


@dataclass(frozen=True)
class Rescaling:
    """How a volume is stored: values are stored integers times ``slope`` plus ``intercept``.

    Attributes:
        slope: exactly what its shortest decimal text says, of at most 16 characters.
        intercept: likewise.
        dtype: int16 or uint16.
        center: of the window, in values.
        width: of the window.
    """

    slope: float
    intercept: float
    dtype: np.dtype
    center: float
    width: float

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Integers for ``values`` of any shape, rounded to the nearest: at most half a slope away."""
        limits = np.iinfo(self.dtype)
        steps = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        return steps.clip(limits.min, limits.max).astype(self.dtype)


def choose_rescaling(volume: np.ndarray, *, slope: float, intercept: float, dtype: np.dtype) -> Rescaling:
    """The source's own rescaling where its steps reach over all values in 16 bits, else steps of their own.

    The source's steps are how finely it was measured. Where they do not do (floats, slices rescaled one by
    one, a wider range), the range is parted into at most 65,535 steps of two significant decimal digits.

    Args:
        volume: float32, any shape.
        slope: of the source's slices, where they are all alike.
        intercept: likewise.
        dtype: what the source stores; floats where the slices are not alike.

    Raises:
        ScoreFusionError: if it holds NaN or infinities.
    """
    low, high = float(volume.min()), float(volume.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ScoreFusionError("the volume holds NaN or infinities, which DICOM integers cannot say")
    sampled = volume[tuple(slice(None, None, -(-n // _SAMPLED)) for n in volume.shape)]
    bottom, top = (float(value) for value in np.percentile(sampled, _WINDOW))
    window = {"center": (bottom + top) / 2, "width": max(top - bottom, 1.0)}
    ends = sorted(np.rint((np.array([low, high], np.float64) - intercept) / slope).tolist())
    kinds = [np.dtype(np.uint16), np.dtype(np.int16)]
    if dtype.kind == "i":
        kinds.reverse()
    for kind in kinds if dtype.kind in "iu" else []:
        if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max:
            return Rescaling(slope, intercept, kind, **window)
    # Below a ten-millionth of the values, steps are finer than float32, and the intercept's text too long.
    finest = max((high - low) / 65534, max(abs(low), abs(high)) * 1e-7) or 1.0
    step = Context(prec=2, rounding=ROUND_CEILING).create_decimal(finest)
    start = (Decimal(low) / step).to_integral_value(ROUND_FLOOR) * step
    return Rescaling(float(step), float(start), np.dtype(np.uint16), **window)
