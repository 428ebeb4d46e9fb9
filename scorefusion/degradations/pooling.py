"""Means of blocks of voxels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scorefusion.degradations.projection import Factor, block_edges, block_mean, upsample_blocks

_ROUNDS = 32


class Pooling:
    """``A`` takes the mean of every block; ``A_dagger`` repeats a value over its block.

    Args:
        factor: the block's edge, or its (z, y, x) edges: ``(4, 1, 1)`` pools along z alone, as in a volume
            of anisotropic spacing.

    Raises:
        ScoreFusionError: for an edge below 1, and in ``A`` for a volume that is not a whole number of blocks.
    """

    def __init__(self, factor: Factor) -> None:
        self.factor = block_edges(factor)

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to ``[B, C, D/rz, H/ry, W/rx]``."""
        return block_mean(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """See :class:`~scorefusion.degradations.operator.Operator`."""
        return upsample_blocks(y, self.factor) / math.prod(self.factor)

    def bounded(self, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
        """``x`` moved between ``lo`` and ``hi`` with block means ``y``, which lie between them, to rounding.

        What clipping takes from a block, its other voxels share.
        """
        x = x.clamp(lo, hi)
        for _ in range(_ROUNDS):
            apart = self.A(x) - y
            if float(apart.abs().max()) <= 1e-6 * (hi - lo):
                break
            free = torch.where(upsample_blocks(apart, self.factor) > 0, x > lo, x < hi)
            apart = apart / self.A(free.to(x.dtype)).clamp_min(1 / math.prod(self.factor))
            x = torch.where(free, x - upsample_blocks(apart, self.factor), x).clamp(lo, hi)
        return x

    def A_dagger(self, y: Tensor) -> Tensor:
        """See :class:`~scorefusion.degradations.operator.Operator`."""
        return upsample_blocks(y, self.factor)
