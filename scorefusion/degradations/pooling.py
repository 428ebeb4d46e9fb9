"""Means of blocks of voxels."""

from __future__ import annotations

import math

from torch import Tensor

from scorefusion.diffusion.consistency import Factor, block_edges, block_mean, upsample_blocks


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

    def A_dagger(self, y: Tensor) -> Tensor:
        """See :class:`~scorefusion.degradations.operator.Operator`."""
        return upsample_blocks(y, self.factor)
