"""How close a volume is to the truth: PSNR, SSIM, and the error of its radial power spectrum."""

from __future__ import annotations

import math

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.metrics.spectrum import compare_spectra
from scorefusion.optional import need

WINDOW = 7
"""Voxels along an edge of the window that SSIM compares; scikit-image's default."""


def psnr(
    volume: np.ndarray,
    truth: np.ndarray,
    data_range: float | None = None,
    *,
    inside: np.ndarray | None = None,
) -> float:
    """Peak signal-to-noise ratio: how far the error lies below the range of intensities, in dB.

    ``20 log10(L / e)``, where e is the root of the mean squared difference over all voxels that count, taken
    together: of a volume there is one figure, not a mean of its slices'.

    Args:
        volume: any shape.
        truth: the same shape and units.
        data_range: L, the span of intensities that can occur, such as white less black of the whole image
            that ``truth`` is a part of; the greatest less the least value of ``truth`` if not given.
        inside: bool, the same shape: the voxels that count; all of them if not given.

    Returns:
        dB; infinite for equal volumes.

    Raises:
        ScoreFusionError: for different shapes, no voxel that counts, or a range that is not positive.
    """
    peak = _range(volume, truth, data_range)
    difference = np.asarray(volume, np.float64) - np.asarray(truth, np.float64)
    error = math.sqrt(float(np.square(_counted(difference, inside)).mean()))
    return 20.0 * math.log10(peak / error) if error > 0.0 else math.inf


def ssim(
    volume: np.ndarray,
    truth: np.ndarray,
    data_range: float | None = None,
    *,
    inside: np.ndarray | None = None,
) -> float:
    """Structural similarity (Wang et al. 2004, equation 13), mean over all windows that lie wholly inside.

    In a window with means m and n, variances v and w and covariance c it is
    ``(2mn + C1)(2c + C2) / ((m² + n² + C1)(v + w + C2))``, C1 = (0.01 L)², C2 = (0.03 L)². Windows are cubes
    of :data:`WINDOW` voxels, or squares of as many pixels, with equal weights; variances have the divisor
    N - 1. These are the defaults of scikit-image, which computes it. Wang et al. weigh 11 pixels by a
    Gaussian; of cubes as large, fewer lie wholly inside a box.

    Intensities should begin at 0: the same constant added to both volumes changes the means' factor.

    Args:
        volume: 2D or 3D, at least :data:`WINDOW` voxels along each axis.
        truth: the same shape and units.
        data_range: L, as :func:`psnr` takes it.
        inside: bool, the same shape: the windows whose middle voxels count; all of them if not given.

    Returns:
        1 for equal volumes, less for all others.

    Raises:
        ScoreFusionError: for different or too small shapes, no voxel that counts, a range that is not
            positive, or without scikit-image.
    """
    peak = _range(volume, truth, data_range)
    if min(truth.shape) < WINDOW:
        shape = list(truth.shape)
        raise ScoreFusionError(f"SSIM needs at least {WINDOW} voxels along each axis, got shape {shape}")
    _, alike = need("skimage.metrics", "SSIM").structural_similarity(
        np.asarray(truth, np.float64),
        np.asarray(volume, np.float64),
        win_size=WINDOW,
        data_range=peak,
        full=True,
    )
    whole = (slice(WINDOW // 2, -(WINDOW // 2)),) * truth.ndim
    return float(_counted(alike[whole], None if inside is None else inside[whole]).mean())


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
