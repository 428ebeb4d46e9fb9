"""Interpolation, the baselines of super-resolution, all on the grid whose blocks are the input's voxels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scorefusion.degradations import Factor, Operator, base_volume, block_edges
from scorefusion.errors import unknown_name
from scorefusion.optional import need

BASELINES = ("nearest", "trilinear", "trilinear+consistency", "b-spline")


def interpolate(volume: Tensor, method: str, factor: Factor, operator: Operator | None = None) -> Tensor:
    """Enlarge a volume ``factor`` times along each axis; one number, or (z, y, x).

    Args:
        volume: ``[B, C, d, h, w]``, any units.
        method: ``b-spline`` (cubic, interpolating, by scipy), or a base of :func:`base_volume`.
        factor: r.
        operator: what was measured, for the bases that need it; means of blocks if None.

    Returns:
        ``[B, C, d·r, h·r, w·r]``, the input's dtype. Fine voxel j lies at coarse (j + 1/2)/r - 1/2.

    Raises:
        ScoreFusionError: for an unknown method, or ``b-spline`` without scipy.
    """
    if method not in (*BASELINES, "pseudo-inverse"):
        raise unknown_name("baseline", method, BASELINES)
    if method != "b-spline":
        return base_volume(volume, method, factor, operator)
    ndimage = need("scipy.ndimage", "b-spline interpolation")
    factors = block_edges(factor)
    if max(factors) == 1:
        return volume.clone()
    # One volume at a time: a spline over all five axes would weigh 4^5 coefficients a voxel, not 4^3.
    fine = [
        ndimage.zoom(one.astype("float64"), factors, order=3, mode="nearest", grid_mode=True)
        for one in volume.detach().flatten(0, 1).cpu().numpy()
    ]
    shape = (*volume.shape[:2], *fine[0].shape)
    return torch.from_numpy(np.stack(fine).reshape(shape)).to(volume)
