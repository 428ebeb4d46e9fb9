"""Volumes as stacks of slices: which axis a plane fixes, and how a slab of slices is cut and put back.

A volume is ``[B, C, D, H, W]`` (z, y, x). Axial slices fix z and are ``[H, W]``; coronal ones fix y and
are ``[D, W]``; sagittal ones fix x and are ``[D, H]``.
"""

from __future__ import annotations

from torch import Tensor

from ..ops.gather_slices import gather_slices as gather_slices
from .config import Plane

AXIS: dict[str, int] = {"axial": 2, "coronal": 3, "sagittal": 4}


def slice_count(volume: Tensor, plane: Plane) -> int:
    """How many slices of ``plane`` a volume ``[B, C, D, H, W]`` has."""
    return volume.shape[AXIS[plane]]


def as_slices(volume: Tensor, plane: Plane) -> Tensor:
    """View a volume ``[B, C, D, H, W]`` as ``[B, n, C, h, w]``, slice-major; nothing is copied."""
    return volume.movedim(AXIS[plane], 1)


def scatter_slices(slices: Tensor, volume: Tensor, plane: Plane, start: int) -> None:
    """Write ``slices [B·n, C, h, w]`` into ``volume [B, C, D, H, W]`` at slice ``start``, in place."""
    target = as_slices(volume, plane)
    count = slices.shape[0] // volume.shape[0]
    target[:, start : start + count] = slices.unflatten(0, (volume.shape[0], count)).to(volume.dtype)
