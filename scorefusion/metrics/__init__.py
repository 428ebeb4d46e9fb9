"""Image metrics, distances between sets of volumes, and the registry that tables and programs read."""

# ruff: noqa: F403
from __future__ import annotations

from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.metrics.image import *
    from scorefusion.metrics.metric import *
    from scorefusion.metrics.sets import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "image": "Spectra compare_spectra patch_distance psnr ssim",
        "metric": "METRICS PLACES Metric Pair measure register shown",
        "sets": "Moments discrepancy frechet_distance paired_terms squared_distances",
    },
)
