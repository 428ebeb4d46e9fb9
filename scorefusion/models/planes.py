"""Volumes as stacks of slices: which axis a plane fixes.

A volume is ``[B, C, D, H, W]`` (z, y, x). Axial slices fix z and are ``[H, W]``; coronal ones fix y and
are ``[D, W]``; sagittal ones fix x and are ``[D, H]``.
"""

from __future__ import annotations

from torch import Tensor

from ..reference.planes import AXIS
from .config import Plane


def slice_count(volume: Tensor, plane: Plane) -> int:
    """How many slices of ``plane`` a volume ``[B, C, D, H, W]`` has."""
    return volume.shape[AXIS[plane]]


def as_slices(volume: Tensor, plane: Plane) -> Tensor:
    """View a volume ``[B, C, D, H, W]`` as ``[B, n, C, h, w]``, slice-major; nothing is copied."""
    return volume.movedim(AXIS[plane], 1)
