"""Volumes as stacks of slices: which axis a plane fixes.

A volume is ``[B, C, D, H, W]`` (z, y, x). Axial slices fix z and are ``[H, W]``; coronal ones fix y and
are ``[D, W]``; sagittal ones fix x and are ``[D, H]``.
"""

from __future__ import annotations

from torch import Tensor

from scorefusion.models.config import Plane
from scorefusion.ops.reference.planes import AXIS

SLAB_PIXELS = 2**17
"""About how many pixels a 2D network is given at once: what suits a CPU's caches."""


def slice_count(volume: Tensor, plane: Plane) -> int:
    """How many slices of ``plane`` a volume ``[B, C, D, H, W]`` has."""
    return volume.shape[AXIS[plane]]


def as_slices(volume: Tensor, plane: Plane) -> Tensor:
    """View a volume ``[B, C, D, H, W]`` as ``[B, n, C, h, w]``, slice-major; nothing is copied."""
    return volume.movedim(AXIS[plane], 1)


def slab_rows(count: int, pixels: int, unit: int, slab: int | None = None, most: int = SLAB_PIXELS) -> int:
    """Slices that a 2D network is given at once: whole blocks of the coarsest feature scale, evenly shared.

    Args:
        count: slices there are, a multiple of ``unit``.
        pixels: pixels of a slice, over the batch.
        unit: slices of a block, the largest of the model's feature scales.
        slab: slices wanted at once, rounded up to whole blocks; by ``most`` when None.
        most: pixels at once, about.
    """
    blocks = max(1, most // (pixels * unit)) if slab is None else max(1, -(-slab // unit))
    slabs = -(-count // (min(blocks, count // unit) * unit))
    return -(-count // (slabs * unit)) * unit
