"""The figures of one result on one subject."""

from __future__ import annotations

from typing import Any

import numpy as np

from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.case import Case
from scorefusion.metrics.image import psnr, ssim
from scorefusion.metrics.patches import patch_distance
from scorefusion.metrics.spectrum import compare_spectra

FIGURES = (
    "psnr",
    "ssim",
    "psnr_inside",
    "ssim_inside",
    "psnr_outside",
    "psnr_fitted",
    "spectrum",
    "spectrum_signed",
    "correlation",
    "patches",
    "consistency",
    "seconds",
)
"""What a row of subjects.csv holds beside its names; docs/evaluation.md defines each."""

VERSION = 3
"""Goes up when a figure's definition changes: stored results are then measured again."""

BANDS = ("frequency", "log_power_ratio", "shell_correlation")

PERFECT = 200.0
"""dB given for a result without any error, so that means stay finite."""


def measure(volume: np.ndarray, case: Case) -> dict[str, Any]:
    """Everything but the time.

    Args:
        volume: float32 ``[d, h, w]`` of the box, normalised.
        case: the subject.

    Returns:
        :data:`FIGURES` but ``seconds``, floats or None where there is nothing to measure; and :data:`BANDS`,
        lists of floats.

    Raises:
        ScoreFusionError: if the result is not finite.
    """
    if not np.isfinite(volume).all():
        raise ScoreFusionError("the result is not finite; compute in float32 (--dtype float32)")
    # The whole truth reaches from 0 to 1: SSIM takes black for 0, and the range is no box's own.
    consistency, inside = case.consistency(volume), case.inside
    volume, truth = case.from_black_to_white(volume), case.from_black_to_white(case.truth)
    translated = not case.config.degradation.measures
    partly = bool(inside.any())
    spectra = compare_spectra(volume, truth)
    return {
        "psnr": min(psnr(volume, truth, 1.0), PERFECT),
        "ssim": ssim(volume, truth, 1.0),
        "psnr_inside": min(psnr(volume, truth, 1.0, inside=inside), PERFECT) if partly else None,
        "ssim_inside": ssim(volume, truth, 1.0, inside=inside) if case.deep_inside else None,
        "psnr_outside": None if inside.all() else min(psnr(volume, truth, 1.0, inside=~inside), PERFECT),
        "psnr_fitted": min(psnr(_fitted(volume, truth), truth, 1.0), PERFECT) if translated else None,
        "spectrum": spectra.error,
        "spectrum_signed": spectra.bias,
        "correlation": spectra.upper_correlation,
        "patches": patch_distance(volume, truth),
        "consistency": consistency,
        "frequency": spectra.frequency.round(6).tolist(),
        "log_power_ratio": spectra.log_ratio.round(6).tolist(),
        "shell_correlation": spectra.correlation.round(6).tolist(),
    }


def _fitted(volume: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``a · volume + b`` that is nearest to the truth in the mean square."""
    x, y = volume.astype(np.float64), truth.astype(np.float64)
    variance = float(x.var())
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / variance if variance > 0.0 else 0.0
    return np.asarray(slope * (x - x.mean()) + y.mean())
