"""Warped copies of a training volume: another voxel size, another head, a smooth deformation.

A variant is resampled once, with cubic splines, after the low-pass filter that its voxel size asks for.
"""

from __future__ import annotations

import numpy as np

from scorefusion.data.rotation import rotation
from scorefusion.data.store import MULTIPLE
from scorefusion.train.config import VariantConfig


def warp(source: np.ndarray, config: VariantConfig, random: np.random.Generator) -> np.ndarray:
    """One random variant of ``source [C, D, H, W]`` float32, sampled on a grid of its own voxel size."""
    from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter, zoom

    spacing = float(random.uniform(*config.spacing))
    axes = np.exp(random.normal(0, config.zoom, 3))
    angles = np.deg2rad(random.normal(0, config.rotation / 2, 3))
    size = np.array(source.shape[1:])
    grid = [max(int(length / spacing) // MULTIPLE, 1) * MULTIPLE for length in size]
    coarse = [max(4, round(length * spacing / config.bend_spacing) + 1) for length in grid]
    bends = random.normal(0, config.bend, (3, *coarse))

    matrix = rotation(angles) * (spacing / axes)[None, :]
    mesh = np.indices(grid, dtype=np.float32) - (np.array(grid, np.float32)[:, None, None, None] - 1) / 2
    places = (
        np.tensordot(matrix.astype(np.float32), mesh, 1)
        + (size[:, None, None, None] - 1).astype(np.float32) / 2
    )
    for axis in range(3):
        places[axis] += zoom(
            bends[axis].astype(np.float32), np.array(grid) / coarse, order=2, grid_mode=True, mode="nearest"
        )
    blur = 0.5 * np.sqrt(max(spacing**2 - 1, 0.0))
    channels = []
    for channel in source:
        smooth = gaussian_filter(channel, blur, mode="nearest") if blur > 0 else channel
        coefficients = spline_filter(smooth, order=3, output=np.float32, mode="nearest")
        channels.append(
            map_coordinates(coefficients, places, order=3, mode="nearest", prefilter=False, output=np.float32)
        )
    return np.stack(channels)
