"""Synthetic lesions: smooth random blobs in the white matter."""

from __future__ import annotations

import numpy as np

from scorefusion.data.synth.anatomy import Anatomy, share
from scorefusion.data.synth.fields import Field, Grid

MEAN_COUNT = 8.0
SMALLEST, LARGEST = 1.5, 9.0
"""Radii in mm; logarithms are drawn uniformly."""


def add_lesions(anatomy: Anatomy, random: np.random.Generator) -> None:
    """Turn blobs of white matter into ``lesion``, a new entry of the anatomy's fractions.

    Between 1 and about 16 of them, most of them small. A blob's border is wavy; grey matter and fluid stay.
    """
    grid, white = anatomy.grid, anatomy.fractions["wm"]
    lesion = np.zeros_like(white)
    inner = np.flatnonzero((white > 0.95) & (anatomy.depth > 4.0))
    count = 1 + int(random.poisson(MEAN_COUNT - 1)) if inner.size else 0
    for _ in range(count):
        centre = np.array(np.unravel_index(inner[int(random.random() * inner.size)], white.shape))
        radius = float(np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST))))
        axes = radius * np.exp(random.normal(0, 0.2, 3))
        box, level = _blob(grid, centre, axes, random)
        np.maximum(lesion[box], share(level), out=lesion[box])
    lesion *= white
    white -= lesion
    anatomy.fractions["lesion"] = lesion


def _blob(
    grid: Grid, centre: np.ndarray, axes: np.ndarray, random: np.random.Generator
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around an ellipsoid with a wavy surface, and its level in mm, positive inside."""
    half = np.ceil(1.6 * axes / grid.spacing).astype(int) + 2
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half + 1, grid.shape)
    waves = Field.draw(random, (2 * half + 1) * grid.spacing, max(2.5, float(axes.min())))
    window = Grid((0.0, 0.0, 0.0), grid.spacing, tuple(int(n) for n in 2 * half + 1))  # type: ignore[arg-type]
    mesh = np.meshgrid(*(np.arange(-h, h + 1) * grid.spacing / a for h, a in zip(half, axes, strict=True)))
    away = np.sqrt(sum(np.swapaxes(part, 0, 1) ** 2 for part in mesh))
    level = float(axes.min()) * (1.0 - away + 0.2 * waves.on(window))
    cut = tuple(slice(int(a), int(b)) for a, b in zip(low - centre + half, high - centre + half, strict=True))
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return box, level[cut].astype(np.float32)
