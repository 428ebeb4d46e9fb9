"""Warped copies of the training volumes, made once and kept as memory-mapped arrays.

A variant has another voxel size, a head of another size and pose, and a smooth deformation, resampled once
with cubic splines after the low-pass filter that its voxel size asks for. The store is addressed by content:
the source's bytes and the settings name the file, so a finished variant is never made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import BadInput
from ..io.nifti import read_scan
from ..preprocess import Intensity
from .config import VariantConfig, VolumeConfig

FACTOR_OF_SIZE = 8


def build_store(
    volumes: Sequence[VolumeConfig],
    variants: VariantConfig,
    folder: Path,
    *,
    seed: int,
    intensity: str,
    factor: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[np.ndarray, float]]:
    """Make or find every variant.

    Args:
        volumes: the sources.
        variants: how variants differ.
        folder: where the arrays are kept.
        seed: of the whole run.
        intensity: the model's intensity normalisation.
        factor: block size of the model's degradation; the normalisation is read off the pooled volume.
        progress: called with (done, total).

    Returns:
        Memory-mapped float16 arrays ``[D, H, W]`` (RAS, intensities near [-1, 1]) with the share of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[tuple[np.ndarray, float]] = []
    total = sum(1 + volume.variants for volume in volumes)
    for place, volume in enumerate(volumes):
        try:
            data = Path(volume.file).read_bytes()
        except OSError as error:
            raise BadInput(
                volume.file, f"cannot be read ({error.strerror})", "Name an existing training volume."
            ) from None
        source: np.ndarray | None = None
        for number in range(1 + volume.variants):
            key = f"{hashlib.sha256(data).hexdigest()}|{variants.model_dump_json() if number else ''}"
            key += f"|{seed}|{place}|{number}|{intensity}|{factor}"
            path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
            if not path.exists():
                if source is None:
                    source = read_scan(volume.file).values
                random = np.random.Generator(np.random.Philox(key=[seed, 1000 * place + number]))
                array = source if number == 0 else warp(source, variants, random)
                _write(path, _normalised(array, intensity, factor))
            found.append((np.load(path, mmap_mode="r"), volume.share / (1 + volume.variants)))
            if progress:
                progress(len(found), total)
    return found


def warp(source: np.ndarray, config: VariantConfig, random: np.random.Generator) -> np.ndarray:
    """One random variant of ``source [D, H, W]`` float32, sampled on a grid of its own voxel size."""
    from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter, zoom

    spacing = float(random.uniform(*config.spacing))
    axes = np.exp(random.normal(0, config.zoom, 3))
    angles = np.deg2rad(random.normal(0, config.rotation / 2, 3))
    size = np.array(source.shape)
    grid = [int(length / spacing) // FACTOR_OF_SIZE * FACTOR_OF_SIZE for length in size]
    coarse = [max(4, round(length * spacing / config.bend_spacing) + 1) for length in grid]
    bends = random.normal(0, config.bend, (3, *coarse))

    blur = 0.5 * np.sqrt(max(spacing**2 - 1, 0.0))
    smooth = gaussian_filter(source, blur, mode="nearest") if blur > 0 else source
    coefficients = spline_filter(smooth, order=3, output=np.float32, mode="nearest")
    matrix = _rotation(angles) * (spacing / axes)[None, :]
    mesh = np.indices(grid, dtype=np.float32) - (np.array(grid, np.float32)[:, None, None, None] - 1) / 2
    places = (
        np.tensordot(matrix.astype(np.float32), mesh, 1)
        + (size[:, None, None, None] - 1).astype(np.float32) / 2
    )
    for axis in range(3):
        places[axis] += zoom(
            bends[axis].astype(np.float32), np.array(grid) / coarse, order=2, grid_mode=True, mode="nearest"
        )
    return map_coordinates(coefficients, places, order=3, mode="nearest", prefilter=False, output=np.float32)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix of three angles in radians, about z, then y, then x."""
    turns = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turns = turns @ turn
    return turns


def _normalised(array: np.ndarray, kind: str, factor: int) -> np.ndarray:
    """Cut to whole blocks and normalise as an input of the model would be: by its pooled intensities."""
    d, h, w = (length // FACTOR_OF_SIZE * FACTOR_OF_SIZE for length in array.shape)
    array = array[:d, :h, :w]
    blocks = array.reshape(d // factor, factor, h // factor, factor, w // factor, factor)
    pooled = blocks.mean(axis=(1, 3, 5))
    return Intensity.of(pooled, kind).normalise(array).astype(np.float16)


def _write(path: Path, array: np.ndarray) -> None:
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with open(beside, "wb") as file:
        np.save(file, array)
    os.replace(beside, path)
