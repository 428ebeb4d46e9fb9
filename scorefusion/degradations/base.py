"""The volume on the target's grid that a measurement suggests: what a residual is added to."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scorefusion.degradations.operator import Operator
from scorefusion.degradations.pooling import Pooling
from scorefusion.degradations.projection import block_edges, upsample_blocks
from scorefusion.errors import ScoreFusionError, unknown_name

BASES = ("nearest", "trilinear", "trilinear+consistency", "pseudo-inverse", "identity")


def base_volume(
    condition: Tensor, kind: str, factor: int | Sequence[int], operator: Operator | None = None
) -> Tensor:
    """The volume that the residual is added to: target = base + scale · residual.

    The fine grid is the one whose blocks are the coarse voxels: fine voxel j lies at coarse coordinate
    (j + 1/2)/factor - 1/2 along each axis.

    Args:
        condition: ``[B, C, d, h, w]``, any units: the measured image, coarse or on the target's grid.
        kind: ``nearest`` (each voxel repeated as a block), ``trilinear`` (edges replicated; linear along
            those axes that are coarser), ``trilinear+consistency`` (that, moved as little as possible until
            it measures as the condition does), ``pseudo-inverse`` (the smallest volume that measures so), or
            ``identity`` for a condition that is on the target's grid.
        factor: how much coarser the condition is, one number or (z, y, x).
        operator: what was measured; means of blocks if None. Only for a coarser condition: one on the
            target's grid is its own measurement, put back by the pseudo-inverse already.

    Returns:
        ``[B, C, d·rz, h·ry, w·rx]``.

    Raises:
        ScoreFusionError: for an unknown kind, or ``identity`` with a factor other than 1.
    """
    if kind not in BASES:
        raise unknown_name("base", kind, BASES)
    factors = block_edges(factor)
    if kind == "identity" and max(factors) > 1:
        raise ScoreFusionError(f"base 'identity' keeps the grid, so its factor is 1; got {factor}")
    if max(factors) == 1:
        return condition
    if kind == "nearest":
        return upsample_blocks(condition, factors)
    operator = operator or Pooling(factors)
    if kind == "pseudo-inverse":
        return operator.A_dagger(condition)
    scales = tuple(float(edge) for edge in factors)
    base = F.interpolate(condition, scale_factor=scales, mode="trilinear", align_corners=False)
    if kind == "trilinear+consistency":
        base = base - operator.A_dagger(operator.A(base) - condition)
    return base
