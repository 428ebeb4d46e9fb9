"""How close a volume is to the truth: PSNR, SSIM, and the error of its radial power spectrum."""

from __future__ import annotations

import math

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.optional import need
from scorefusion.spectrum import compare_spectra


def psnr(
    volume: np.ndarray,
    truth: np.ndarray,
    data_range: float | None = None,
    *,
    inside: np.ndarray | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(range² / mean squared error)``.

    Args:
        volume: any shape.
        truth: the same shape and units.
        data_range: the difference of white and black; that of ``truth`` if not given.
        inside: bool, the same shape: the voxels that count; all of them if not given.

    Returns:
        dB; infinite for equal volumes.

    Raises:
        ScoreFusionError: for different shapes, no voxel that counts, or a truth that is constant while no
            range is given.
    """
    span = _range(volume, truth, data_range)
    squares = (np.asarray(volume, np.float64) - np.asarray(truth, np.float64)) ** 2
    error = float(_counted(squares, inside).mean())
    return math.inf if error == 0.0 else 10.0 * math.log10(span**2 / error)


def ssim(
    volume: np.ndarray,
    truth: np.ndarray,
    data_range: float | None = None,
    *,
    inside: np.ndarray | None = None,
) -> float:
    """Mean structural similarity (Wang et al. 2004) over 7-voxel cubes, by scikit-image.

    Args:
        volume: 2D or 3D, at least 7 voxels along each axis.
        truth: the same shape and units.
        data_range: the difference of white and black; that of ``truth`` if not given.
        inside: bool, the same shape: the cubes whose middle voxels count; all of them if not given.

    Raises:
        ScoreFusionError: for different or too small shapes, no voxel that counts, or without scikit-image.
    """
    span = _range(volume, truth, data_range)
    if min(truth.shape) < 7:
        raise ScoreFusionError(f"SSIM needs at least 7 voxels along each axis, got shape {list(truth.shape)}")
    similarity = need("skimage.metrics", "SSIM").structural_similarity
    pair = np.asarray(truth, np.float64), np.asarray(volume, np.float64)
    if inside is None:
        return float(similarity(*pair, data_range=span))
    _, alike = similarity(*pair, data_range=span, full=True)
    whole_cubes = (slice(3, -3),) * truth.ndim
    return float(_counted(alike[whole_cubes], inside[whole_cubes]).mean())


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
    return compare_spectra(volume, truth).error


def _counted(values: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """The values that count."""
    if inside is None:
        return values
    if inside.shape != values.shape or not inside.any():
        raise ScoreFusionError(
            f"the voxels that count have shape {list(inside.shape)}, {int(inside.sum())} of them; "
            f"the volume has shape {list(values.shape)}"
        )
    return np.asarray(values[inside])


def _range(volume: np.ndarray, truth: np.ndarray, data_range: float | None) -> float:
    _same(volume, truth)
    span = float(np.max(truth) - np.min(truth)) if data_range is None else float(data_range)
    if not span > 0.0:
        raise ScoreFusionError(f"the data range must be positive, got {span:g}")
    return span


def _same(volume: np.ndarray, truth: np.ndarray) -> None:
    if volume.shape != truth.shape:
        raise ScoreFusionError(f"volume has shape {list(volume.shape)}, truth {list(truth.shape)}")
