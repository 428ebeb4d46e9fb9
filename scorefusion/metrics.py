"""How close a volume is to the truth: PSNR, SSIM, and the error of its radial power spectrum."""

from __future__ import annotations

import math

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.optional import need


def psnr(volume: np.ndarray, truth: np.ndarray, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(range² / mean squared error)``.

    Args:
        volume: any shape.
        truth: the same shape and units.
        data_range: the difference of white and black; that of ``truth`` if not given.

    Returns:
        dB; infinite for equal volumes.

    Raises:
        ScoreFusionError: for different shapes, or a truth that is constant while no range is given.
    """
    span = _range(volume, truth, data_range)
    error = float(np.mean((np.asarray(volume, np.float64) - np.asarray(truth, np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(span**2 / error)


def ssim(volume: np.ndarray, truth: np.ndarray, data_range: float | None = None) -> float:
    """Mean structural similarity (Wang et al. 2004) over 7-voxel cubes, by scikit-image.

    Args:
        volume: 2D or 3D, at least 7 voxels along each axis.
        truth: the same shape and units.
        data_range: the difference of white and black; that of ``truth`` if not given.

    Raises:
        ScoreFusionError: for different or too small shapes, or without scikit-image.
    """
    span = _range(volume, truth, data_range)
    if min(truth.shape) < 7:
        raise ScoreFusionError(f"SSIM needs at least 7 voxels along each axis, got shape {list(truth.shape)}")
    similarity = need("skimage.metrics", "SSIM").structural_similarity
    return float(similarity(np.asarray(truth, np.float64), np.asarray(volume, np.float64), data_range=span))


def power_spectrum_error(volume: np.ndarray, truth: np.ndarray) -> float:
    """Mean ``|log10(power / true power)|`` over the upper half of the radial bands: too smooth or too grainy.

    Bands are shells of spatial frequency |f| of equal width from 0 to the Nyquist frequency of 0.5 cycles a
    voxel, as many as half the shortest axis has voxels; power is the mean of |DFT|² over a shell. The upper
    half begins at 0.25 cycles a voxel. 0 is perfect; 1 is ten times too much or too little, on average.

    Args:
        volume: 2D or 3D.
        truth: the same shape.

    Raises:
        ScoreFusionError: for different shapes, or axes shorter than 8.
    """
    _same(volume, truth)
    shape = truth.shape
    if min(shape) < 8:
        raise ScoreFusionError(f"a power spectrum needs at least 8 voxels an axis, got shape {list(shape)}")
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
    power = [_band_power(array, band, weights, count) for array in (volume, truth)]
    floor = np.finfo(np.float64).tiny
    ratio = np.log10(np.maximum(power[0], floor)) - np.log10(np.maximum(power[1], floor))
    return float(np.abs(ratio[count // 2 :]).mean())


def _band_power(array: np.ndarray, band: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    spectrum = np.fft.rfftn(np.asarray(array, np.float64))
    power = (spectrum.real**2 + spectrum.imag**2).ravel() * weights
    inside = band < count
    total = np.bincount(band[inside], power[inside], minlength=count)
    return total / np.bincount(band[inside], weights[inside], minlength=count)


def _range(volume: np.ndarray, truth: np.ndarray, data_range: float | None) -> float:
    _same(volume, truth)
    span = float(np.max(truth) - np.min(truth)) if data_range is None else float(data_range)
    if not span > 0.0:
        raise ScoreFusionError(f"the data range must be positive, got {span:g}")
    return span


def _same(volume: np.ndarray, truth: np.ndarray) -> None:
    if volume.shape != truth.shape:
        raise ScoreFusionError(f"volume has shape {list(volume.shape)}, truth {list(truth.shape)}")
