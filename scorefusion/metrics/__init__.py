"""Image metrics, distances between sets of volumes, and the registry that tables and programs read."""

# ruff: noqa: F401
from scorefusion.metrics.image import Spectra, compare_spectra, patch_distance, psnr, ssim
from scorefusion.metrics.metric import METRICS, PLACES, Metric, Pair, measure, register, shown
from scorefusion.metrics.sets import Moments, discrepancy, frechet_distance, paired_terms, squared_distances
