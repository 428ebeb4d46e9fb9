"""How close a volume is to the truth: PSNR, SSIM, the distance of small patches, and spectra.

In each radial band of |f|, with V and T the discrete Fourier transforms of volume and truth,

    power ratio = sum |V|² / sum |T|²
    Fourier shell correlation = Re sum V conj(T) / sqrt(sum |V|² · sum |T|²)

The ratio says whether a volume is too smooth or too sharp, and cannot tell detail from grain; the correlation
(Harauz and van Heel 1986) counts only what is in the right place: it is highest for the posterior mean.
"""

import math
from dataclasses import dataclass

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.metrics.sets import discrepancy, squared_distances
from scorefusion.optional import need

WINDOW = 7  #: voxels along an edge of the window that SSIM compares; scikit-image's default
MARGIN = WINDOW // 2
_LEAST = 8


def psnr(
    volume: np.ndarray,
    truth: np.ndarray,
    data_range: float | None = None,
    *,
    inside: np.ndarray | None = None,
) -> float:
    """Peak signal-to-noise ratio ``20 log10(L / e)``, e the root mean squared difference of all voxels.

    Args:
        volume: any shape.
        truth: the same shape and units.
        data_range: L, the span of intensities that can occur; that of ``truth`` by default.
        inside: bool, the same shape: the voxels that count; all by default.

    Returns dB, infinite for equal volumes. Raises ScoreFusionError for different shapes, no voxel that
    counts, or a range that is not positive.
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
    (squares) of :data:`WINDOW` voxels, equal weights; variances have the divisor N - 1: scikit-image's
    defaults, which computes it. Intensities should begin at 0: a constant added to both changes the result.

    Args:
        volume: 2D or 3D, at least :data:`WINDOW` voxels along each axis.
        truth: the same shape and units.
        data_range: L, as :func:`psnr` takes it.
        inside: bool, the same shape: the windows whose middle voxels count; all by default.

    Returns 1 for equal volumes, less for all others. Raises ScoreFusionError for different or too small
    shapes, no voxel that counts, a range that is not positive, or without scikit-image.
    """
    peak = _range(volume, truth, data_range)
    if min(truth.shape) < WINDOW:
        shape = list(truth.shape)
        raise ScoreFusionError(f"SSIM needs at least {WINDOW} voxels along each axis, got shape {shape}")
    similarity = need("skimage.metrics", "SSIM").structural_similarity
    images = (np.asarray(array, np.float64) for array in (truth, volume))
    _, alike = similarity(*images, win_size=WINDOW, data_range=peak, full=True)
    whole = (slice(MARGIN, -MARGIN),) * truth.ndim
    return float(_counted(alike[whole], None if inside is None else inside[whole]).mean())


def patch_distance(
    volume: np.ndarray, truth: np.ndarray, *, size: int = 5, count: int = 1000, draws: int = 4, seed: int = 0
) -> float:
    """Squared maximum mean discrepancy (Gretton et al. 2012, equation 3, unbiased) of small patches.

    A figure of realism, that too smooth and too grainy a volume both raise. Patches, less their means, are
    compared with the truth's at other places, where it exceeds its 20th percentile, so that fidelity does not
    count. The kernel is exp(-|a - b|²/h), h the median of |a - b|² among the truth's patches.

    Args:
        volume: 2D or 3D.
        truth: the same shape and units.
        size: edge of a patch, voxels.
        count: patches of either kind; fewer where there are not so many.
        draws: how often places are drawn anew; the mean is returned.
        seed: of the places: the same for every volume of a shape, so that differences are less noisy.

    Returns 0 in the mean for patches alike (the estimate may be a little below), about 2 for nothing alike.
    Raises ScoreFusionError for different shapes, fewer than 8 places for patches, or a truth without texture.
    """
    _check_shapes(volume, truth)
    if size < 2 or min(truth.shape) < size:
        raise ScoreFusionError(f"patches of edge {size} do not fit into shape {list(truth.shape)}")
    middle = tuple(slice(size // 2, length - size + 1 + size // 2) for length in truth.shape)
    places = np.argwhere(truth[middle] > np.percentile(truth, 20.0))
    if len(places) < 8:
        raise ScoreFusionError(f"found {len(places)} places for patches of edge {size}, need at least 8")

    def patches(array: np.ndarray, at: tuple[np.ndarray, ...]) -> np.ndarray:
        """The patches at some places as rows, less the mean of each."""
        windows = np.lib.stride_tricks.sliding_window_view(array, (size,) * array.ndim)
        rows = np.asarray(windows[at], np.float64).reshape(len(at[0]), -1)
        return rows - rows.mean(axis=1, keepdims=True)

    random = np.random.default_rng(seed)
    half = min(count, len(places) // 2)
    distances = []
    for _ in range(draws):
        drawn = random.permutation(len(places))[: 2 * half]
        here, there = (tuple(places[part].T) for part in (drawn[:half], drawn[half:]))
        true_here, true_there = patches(truth, here), patches(truth, there)
        width = float(np.median(squared_distances(true_here, true_there)))
        if not width > 0.0:
            raise ScoreFusionError("the truth's patches are all alike; it has no texture to compare with")
        distances.append(discrepancy(patches(volume, here), true_there, width))
        distances.append(discrepancy(patches(volume, there), true_here, width))
    return float(np.mean(distances))


def _counted(values: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    if inside is None:
        return values
    if inside.shape != values.shape or not inside.any():
        counted = f"the voxels that count have shape {list(inside.shape)}, {int(inside.sum())} of them"
        raise ScoreFusionError(f"{counted}; the volume has shape {list(values.shape)}")
    return np.asarray(values[inside])


def _range(volume: np.ndarray, truth: np.ndarray, data_range: float | None) -> float:
    _check_shapes(volume, truth)
    span = float(np.max(truth) - np.min(truth)) if data_range is None else float(data_range)
    if not span > 0.0:
        raise ScoreFusionError(f"the data range must be positive, got {span:g}")
    return span


def _check_shapes(volume: np.ndarray, truth: np.ndarray) -> None:
    if volume.shape != truth.shape:
        raise ScoreFusionError(f"volume has shape {list(volume.shape)}, truth {list(truth.shape)}")


@dataclass(frozen=True, eq=False)
class Spectra:
    """Radial spectra of a volume and the truth, in bands of equal width up to 0.5 cycles per voxel.

    There are half as many bands as the shortest axis has voxels.
    """

    frequency: np.ndarray  #: float64 ``[bands]``, the middle of each band, cycles per voxel
    power: np.ndarray  #: float64 ``[bands]``, mean of |DFT|² of the volume over the band
    true_power: np.ndarray  #: the same of the truth
    correlation: np.ndarray  #: float64 ``[bands]``, of Fourier shells, -1..1; 0 where either has no power

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


def compare_spectra(volume: np.ndarray, truth: np.ndarray) -> Spectra:
    """Compare a volume, 2D or 3D, with the truth of the same shape in every band.

    Raises ScoreFusionError for different shapes, or axes shorter than 8.
    """
    _check_shapes(volume, truth)
    shape = truth.shape
    if min(shape) < _LEAST:
        needed = f"a power spectrum needs at least {_LEAST} voxels an axis"
        raise ScoreFusionError(f"{needed}, got shape {list(shape)}")
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    squares = sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True))
    count = min(shape) // 2
    band = np.floor(np.sqrt(squares) * (2 * count)).astype(np.int64)
    # A real volume's spectrum is symmetric: all but the first and last planes of the half stand for two.
    weight = np.full(axes[-1].shape, 2.0)
    weight[0] = 1.0
    if shape[-1] % 2 == 0:
        weight[-1] = 1.0
    inside = band < count
    band, weights = band[inside], np.broadcast_to(weight, band.shape)[inside]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(band, values[inside] * weights, minlength=count)

    v, t = (np.fft.rfftn(np.asarray(array, np.float64)) for array in (volume, truth))
    power, true_power = total(v.real**2 + v.imag**2), total(t.real**2 + t.imag**2)
    together = total(v.real * t.real + v.imag * t.imag)
    size = np.sqrt(power) * np.sqrt(true_power)
    correlation = np.divide(together, size, out=np.zeros(count), where=size > 0.0)
    members = np.bincount(band, weights, minlength=count)
    return Spectra((np.arange(count) + 0.5) / (2 * count), power / members, true_power / members, correlation)
