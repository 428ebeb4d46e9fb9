"""Volumes as stacks of slices: which axis a plane fixes, and how a slab of slices is cut and put back.

A volume is ``[B, C, D, H, W]`` (z, y, x). Axial slices fix z and are ``[H, W]``; coronal ones fix y and
are ``[D, W]``; sagittal ones fix x and are ``[D, H]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Plane

AXIS: dict[str, int] = {"axial": 2, "coronal": 3, "sagittal": 4}


def slice_count(volume: Tensor, plane: Plane) -> int:
    """How many slices of ``plane`` a volume ``[B, C, D, H, W]`` has."""
    return volume.shape[AXIS[plane]]


def as_slices(volume: Tensor, plane: Plane) -> Tensor:
    """View a volume ``[B, C, D, H, W]`` as ``[B, n, C, h, w]``, slice-major; nothing is copied."""
    return volume.movedim(AXIS[plane], 1)


def gather_slices(
    x_t: Tensor,
    condition: Tensor,
    common: Tensor | None,
    plane: Plane,
    start: int,
    stop: int,
    *,
    context: int,
    order: str = "modality",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Cut a slab of 2.5D slices: ``[condition with its neighbours, common, x_t]`` on the channel axis.

    Args:
        x_t: noisy target ``[B, 1, D, H, W]``.
        condition: the branch's conditions ``[B, c, D, H, W]``.
        common: position and mask channels ``[B, p, D, H, W]``, or None.
        plane: the plane whose slices are cut.
        start: first slice.
        stop: one past the last slice.
        context: neighbours on either side; beyond the volume the edge slice is repeated.
        order: ``modality`` (all neighbours of one condition, then of the next) or ``slice``.
        dtype: of the result.

    Returns:
        ``[B·(stop - start), (2·context + 1)·c + p + 1, h, w]``, channels last in memory.
    """
    stack = as_slices(condition, plane)
    offsets = torch.arange(-context, context + 1, device=condition.device)
    places = torch.arange(start, stop, device=condition.device)
    index = (places[:, None] + offsets).clamp(0, stack.shape[1] - 1)
    near = stack[:, index]
    if order == "modality":
        near = near.transpose(2, 3)
    near = near.flatten(2, 3)
    parts = [near, *([as_slices(common, plane)[:, start:stop]] if common is not None else [])]
    parts.append(as_slices(x_t, plane)[:, start:stop])
    slab = torch.cat([part.to(dtype) for part in parts], dim=2).flatten(0, 1)
    return slab.contiguous(memory_format=torch.channels_last)


def scatter_slices(slices: Tensor, volume: Tensor, plane: Plane, start: int) -> None:
    """Write ``slices [B·n, C, h, w]`` into ``volume [B, C, D, H, W]`` at slice ``start``, in place."""
    target = as_slices(volume, plane)
    count = slices.shape[0] // volume.shape[0]
    target[:, start : start + count] = slices.unflatten(0, (volume.shape[0], count)).to(volume.dtype)
