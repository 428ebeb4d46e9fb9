"""Image metrics, distances between sets of volumes, and the registry that tables and programs read."""

from scorefusion.metrics.image import patch_distance, psnr, ssim
from scorefusion.metrics.metric import METRICS, PLACES, Metric, Pair, measure, register, shown
from scorefusion.metrics.sets import (
    Moments,
    discrepancy,
    frechet_distance,
    paired_terms,
    squared_distances,
)
from scorefusion.metrics.spectrum import Spectra, compare_spectra

__all__ = [
    "METRICS",
    "PLACES",
    "Metric",
    "Moments",
    "Pair",
    "Spectra",
    "compare_spectra",
    "discrepancy",
    "frechet_distance",
    "measure",
    "paired_terms",
    "patch_distance",
    "psnr",
    "register",
    "shown",
    "squared_distances",
    "ssim",
]
