"""Compare a volume with the truth by spatial frequency: power ratio and Fourier shell correlation.

In each radial band of |f|, with V and T the discrete Fourier transforms of volume and truth,

    power ratio = sum |V|² / sum |T|²
    Fourier shell correlation = Re sum V conj(T) / sqrt(sum |V|² · sum |T|²)

The ratio says whether a volume is too smooth or too sharp, and cannot tell detail from grain; the correlation
(Harauz and van Heel 1986) counts only what is in the right place: it is highest for the posterior mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorefusion.errors import ScoreFusionError

_LEAST = 8


@dataclass(frozen=True, eq=False)
class Spectra:
    """Radial spectra of a volume and the truth, in bands of equal width up to 0.5 cycles per voxel.

    There are half as many bands as the shortest axis has voxels.
    """

    frequency: np.ndarray  #: float64 ``[bands]``, the middle of each band, cycles per voxel
    power: np.ndarray  #: float64 ``[bands]``, mean of |DFT|² of the volume over the band
    true_power: np.ndarray  #: the same of the truth
    #: float64 ``[bands]``, Fourier shell correlation, -1..1; 0 where either has no power
    correlation: np.ndarray

    @property
    def log_ratio(self) -> np.ndarray:
        """``log10(power / true power)`` by band: below 0 too smooth, above too sharp or too grainy."""
        floor = np.finfo(np.float64).tiny
        return np.log10(np.maximum(self.power, floor)) - np.log10(np.maximum(self.true_power, floor))

    @property
    def upper(self) -> slice:
        """The upper half of the bands, from 0.25 cycles per voxel."""
        return slice(len(self.frequency) // 2, None)

    @property
    def error(self) -> float:
        """Mean ``|log10 power ratio|`` of the upper half: 0 is perfect, 1 ten times too much or little."""
        return float(np.abs(self.log_ratio[self.upper]).mean())

    @property
    def bias(self) -> float:
        """Mean ``log10 power ratio`` of the upper half, with its sign: below 0 is too smooth."""
        return float(self.log_ratio[self.upper].mean())

    @property
    def upper_correlation(self) -> float:
        """Mean Fourier shell correlation of the upper half: 1 is perfect, 0 is grain."""
        return float(self.correlation[self.upper].mean())


def check_shapes(volume: np.ndarray, truth: np.ndarray) -> None:
    """Raise a ``ScoreFusionError`` unless both have one shape."""
    if volume.shape != truth.shape:
        raise ScoreFusionError(f"volume has shape {list(volume.shape)}, truth {list(truth.shape)}")


def compare_spectra(volume: np.ndarray, truth: np.ndarray) -> Spectra:
    """Compare a volume, 2D or 3D, with the truth of the same shape in every band.

    Raises:
        ScoreFusionError: for different shapes, or axes shorter than 8.
    """
    check_shapes(volume, truth)
    shape = truth.shape
    if min(shape) < _LEAST:
        raise ScoreFusionError(
            f"a power spectrum needs at least {_LEAST} voxels an axis, got shape {list(shape)}"
        )
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    squares = [
        (f**2).reshape([-1 if i == axis else 1 for i in range(len(axes))]) for axis, f in enumerate(axes)
    ]
    count = min(shape) // 2
    band = np.floor(np.sqrt(sum(squares)) * (2 * count)).astype(np.int64).ravel()
    # A real volume's spectrum is symmetric: all but the first and last planes of the half stand for two.
    weight = np.full(axes[-1].shape, 2.0)
    weight[0] = 1.0
    if shape[-1] % 2 == 0:
        weight[-1] = 1.0
    weights = np.broadcast_to(weight, [len(axis) for axis in axes]).ravel()
    inside = band < count
    band, weights = band[inside], weights[inside]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(band, values.ravel()[inside] * weights, minlength=count)

    v, t = (np.fft.rfftn(np.asarray(array, np.float64)) for array in (volume, truth))
    power, true_power = total(v.real**2 + v.imag**2), total(t.real**2 + t.imag**2)
    together = total(v.real * t.real + v.imag * t.imag)
    size = np.sqrt(power) * np.sqrt(true_power)
    correlation = np.divide(together, size, out=np.zeros(count), where=size > 0.0)
    members = np.bincount(band, weights, minlength=count)
    return Spectra((np.arange(count) + 0.5) / (2 * count), power / members, true_power / members, correlation)
