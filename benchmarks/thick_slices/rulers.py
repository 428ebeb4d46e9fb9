"""Figures of one restored volume against its truth, the slices' axis first in both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.thick_slices.heads import Sliced
from scorefusion.metrics import psnr, ssim
from scorefusion.optional import need

CONE = math.radians(30)
HALF, FOUND = 0.5, 0.25  #: shares of a true lesion's contrast: its border, and below which it is erased


def figures(volume: np.ndarray, given: Sliced, peak: float) -> dict[str, float]:
    """PSNR and SSIM in head and brain, shell correlation in the cone about the slices' axis, consistency."""
    x = torch.from_numpy(np.ascontiguousarray(volume))[None, None].float()
    apart = given.operator.A(x)[0, 0].numpy() - given.slices
    span = float(given.slices.max() - given.slices.min())
    fidelity = {}
    for name, mask in (("", given.inside), ("_brain", given.brain)):
        box = bounds(mask, 4)
        pair = volume[box], given.truth[box]
        fidelity["psnr" + name] = psnr(*pair, peak, inside=mask[box])
        fidelity["ssim" + name] = ssim(*pair, peak, inside=mask[box])
    return fidelity | {
        "cone": cone_correlation(volume, given.truth, given.measurement.step),
        "inconsistency": float(np.abs(apart).max()) / span,
    }


def bounds(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The box around what is true, and so many voxels more where there are."""
    found = []
    for axis in range(mask.ndim):
        at = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        found.append(slice(max(0, int(at[0]) - margin), int(at[-1]) + 1 + margin))
    return tuple(found)


def cone_correlation(volume: np.ndarray, truth: np.ndarray, step: int) -> float:
    """Mean Fourier shell correlation beyond the slices' Nyquist frequency, in 30° about their axis.

    Shells are one frequency of the slices' axis wide, from 1 / (2 step) to 1/2 cycles a voxel.
    """
    spectra = [np.fft.rfftn(each.astype(np.float32)) for each in (volume, truth)]
    d, h, w = truth.shape
    z = np.fft.fftfreq(d)[:, None, None]
    across = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])[None]
    radius = np.sqrt(z**2 + across**2)
    cone = (across <= np.tan(CONE) * np.abs(z)) & (radius >= 0.5 / step) & (radius <= 0.5)
    shells = np.floor(radius[cone] * d).astype(int)
    v, t = (spectrum[cone] for spectrum in spectra)
    sums = [np.bincount(shells, each) for each in ((v * t.conj()).real, np.abs(v) ** 2, np.abs(t) ** 2)]
    held = sums[2] > 0
    return float((sums[0][held] / np.sqrt(np.maximum(sums[1][held], 1e-30) * sums[2][held])).mean())


def calibration(error: np.ndarray, deviation: np.ndarray, share: float = 0.8) -> dict[str, float]:
    """What the deviation over samples says about the error of their mean, voxel by voxel.

    Args:
        error: mean less truth, ``[n]``.
        deviation: over the samples, ``[n]``.
        share: of the voxels that an error bar is to hold.

    Returns:
        ``factor``: times the deviation, the error is below it in ``share`` of the voxels. ``coverage``: share
        of the voxels within the band that normal samples would have. ``rank``: Spearman's correlation of
        deviation and absolute error. ``sparsification``: leaving out voxels in the order of their error
        gains the most; the share of it that is gained in the order of their deviation.
    """
    stats = need("scipy.stats", "the calibration")
    apart = np.abs(error).astype(np.float64)
    band = apart / np.maximum(deviation, 1e-12 * apart.max())
    means = [_remaining(apart[np.argsort(order)]) for order in (deviation, apart)]
    flat = float(np.sqrt(np.mean(apart**2)))
    return {
        "factor": float(np.quantile(band, share)),
        "coverage": float((band <= stats.norm.ppf(0.5 + share / 2)).mean()),
        "rank": float(stats.spearmanr(deviation, apart).statistic),
        "sparsification": (flat - means[0]) / (flat - means[1]),
    }


def _remaining(apart: np.ndarray) -> float:
    """Root mean square error of the first share of voxels, averaged over shares from 1% to all."""
    ends = np.linspace(0.01, 1, 100) * len(apart)
    sums = np.cumsum(apart**2)
    return float(np.mean([np.sqrt(sums[max(int(end), 1) - 1] / max(int(end), 1)) for end in ends]))


@dataclass(frozen=True)
class Lesion:
    """A painted ball."""

    centre: tuple[float, float, float]  #: in voxels, the slices' axis first
    diameter: float  #: in voxels
    contrast: float  #: brightness less its surroundings'


def paint(truth: np.ndarray, lesions: list[Lesion]) -> np.ndarray:
    """Add balls to a volume; voxels at their borders are covered in part."""
    painted = truth.copy()
    for each in lesions:
        box, distance = _around(truth.shape, each, 2.0)
        painted[box] += each.contrast * np.clip(each.diameter / 2 - distance + 0.5, 0, 1)
    return painted


def contrast_and_volume(change: np.ndarray, lesion: Lesion) -> tuple[float, float]:
    """Contrast of a lesion, and its volume at half of the true height, in voxels.

    ``change`` is a restored volume with lesions less the same without.
    """
    box, distance = _around(change.shape, lesion, max(4.0, lesion.diameter))
    near = change[box] / lesion.contrast
    core = near[distance <= max(lesion.diameter / 4, 0.9)]
    return float(core.mean()), float((near[distance <= lesion.diameter / 2 + 3] > HALF).sum())


def dots(volume: np.ndarray, inside: np.ndarray, least: float, sigma: float = 1.5) -> np.ndarray:
    """Places ``[n, 3]`` of bright dots: maxima of a difference of Gaussians above ``least``."""
    ndimage = need("scipy.ndimage", "the dots")
    response = ndimage.gaussian_filter(volume, sigma) - ndimage.gaussian_filter(volume, 2 * sigma)
    top = ndimage.maximum_filter(response, 5) == response
    return np.argwhere(top & (response > least) & inside)


def unmatched(found: np.ndarray, known: np.ndarray, reach: float) -> int:
    """How many places are farther than ``reach`` voxels from every known one."""
    if not len(found):
        return 0
    if not len(known):
        return len(found)
    distance, _ = need("scipy.spatial", "the dots").cKDTree(known).query(found)
    return int((distance > reach).sum())


def _around(shape: tuple[int, ...], lesion: Lesion, more: float) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around a lesion, and each of its voxels' distance from the centre."""
    reach = lesion.diameter / 2 + more
    box = tuple(
        slice(max(0, math.floor(c - reach)), min(n, math.ceil(c + reach) + 1))
        for c, n in zip(lesion.centre, shape, strict=True)
    )
    axes = np.ix_(*(np.arange(b.start, b.stop) - c for b, c in zip(box, lesion.centre, strict=True)))
    return box, np.sqrt(sum(axis**2 for axis in axes))
