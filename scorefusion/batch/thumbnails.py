"""Small pictures of volumes, a few kilobytes each."""

import io
from typing import NamedTuple

import numpy as np

from scorefusion.io.figures import middle, plane_images

Spacing = tuple[float, float, float]

SAMPLE = 64
"""Grey scale and foreground are found on every n-th voxel: about so many along each axis."""
QUALITY = 50


class View(NamedTuple):
    """What two pictures share so that they can be compared."""

    limits: tuple[float, float]  #: what is black and what is white, in the volume's units
    where: tuple[float, float, float]  #: (z, y, x) place of the planes, as a fraction of each axis


def view_of(volume: np.ndarray) -> View:
    """Return the grey scale, and the middle of what is bright, of a volume ``[D, H, W]``."""
    sample = volume[tuple(slice(None, None, max(1, n // SAMPLE)) for n in volume.shape)]
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return View((0.0, 0.0), (0.5, 0.5, 0.5))
    lo, hi = (float(value) for value in np.percentile(finite, (0.5, 99.8)))
    if not hi > lo:
        lo, hi = float(finite.min()), float(finite.max())
    return View((lo, hi), middle(sample, lo + 0.1 * (hi - lo)))


def strip(volume: np.ndarray, spacing: Spacing, view: View | None = None, height: int = 96) -> bytes:
    """Draw the axial, coronal and sagittal plane of ``[D, H, W]`` in RAS+ order side by side, on black.

    ``spacing`` is (z, y, x) in mm; the strip is ``height`` pixels high and three times as wide. A WebP image,
    or a JPEG where Pillow lacks WebP.
    """
    from PIL import Image, features

    limits, where = view or view_of(volume)
    picture = Image.new("L", (3 * height, height))
    for column, (_, plane, aspect) in enumerate(plane_images(volume, spacing, where)):
        image = Image.fromarray(_grey(plane[::-1], limits))
        edges = image.width, image.height * aspect
        size = max(1, round(edges[0] * height / max(edges))), max(1, round(edges[1] * height / max(edges)))
        enlarged = size[0] > image.width or size[1] > image.height
        image = image.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX)
        picture.paste(image, (column * height + (height - size[0]) // 2, (height - size[1]) // 2))
    buffer, webp = io.BytesIO(), {"format": "WEBP", "method": 4}
    picture.save(buffer, quality=QUALITY, **(webp if features.check("webp") else {"format": "JPEG"}))
    return buffer.getvalue()


def pair(before: np.ndarray, spacing: Spacing, after: np.ndarray, fine: Spacing) -> tuple[bytes, bytes]:
    """Draw strips of an input and of its translation: the same planes, on the input's grey scale.

    ``before`` is ``[D, H, W]`` in RAS+ order, ``after`` the same box on a grid with voxels of ``fine`` mm.
    """
    view = view_of(before)
    return strip(before, spacing, view), strip(after, fine, view)


def _grey(plane: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    lo, hi = limits
    if not hi > lo:
        return np.zeros(plane.shape, np.uint8)
    grey = (plane.astype(np.float32) - np.float32(lo)) * np.float32(255 / (hi - lo))
    return np.nan_to_num(grey, nan=0.0).clip(0, 255).astype(np.uint8)
