"""Means of blocks of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefusion.degradations.operator import LinearOperator
from scorefusion.errors import ScoreFusionError

Factor = int | Sequence[int]
_ROUNDS = 32


def block_edges(factor: Factor) -> tuple[int, int, int]:
    """Return the block's (z, y, x) edges.

    Raises:
        ScoreFusionError: unless they are one number, or three, of at least 1.
    """
    edges = (factor,) * 3 if isinstance(factor, int) else tuple(int(edge) for edge in factor)
    if len(edges) != 3 or min(edges) < 1:
        raise ScoreFusionError(f"a block needs one edge, or three, of at least 1; got {factor}")
    return edges


def block_mean(x: Tensor, factor: Factor) -> Tensor:
    """Return the mean of every block.

    Args:
        x: ``[B, C, D, H, W]``.
        factor: the block's edge, or its (z, y, x) edges.

    Returns:
        ``[B, C, D/rz, H/ry, W/rx]``.

    Raises:
        ScoreFusionError: if the volume is not a whole number of blocks.
    """
    rz, ry, rx = edges = block_edges(factor)
    b, c, d, h, w = _size_of(x)
    if any(length % edge for length, edge in zip((d, h, w), edges, strict=True)):
        size, block = (" x ".join(str(n) for n in lengths) for lengths in ((d, h, w), edges))
        raise ScoreFusionError(f"a volume of {size} voxels is not a whole number of {block} blocks")
    return x.reshape(b, c, d // rz, rz, h // ry, ry, w // rx, rx).mean(dim=(3, 5, 7))


def upsample_blocks(x: Tensor, factor: Factor) -> Tensor:
    """Return the volume with every voxel repeated as a block.

    Args:
        x: ``[B, C, D, H, W]``.
        factor: the block's edge, or its (z, y, x) edges.

    Returns:
        ``[B, C, D*rz, H*ry, W*rx]``.
    """
    rz, ry, rx = block_edges(factor)
    b, c, d, h, w = _size_of(x)
    blocks = x[:, :, :, None, :, None, :, None].expand(b, c, d, rz, h, ry, w, rx)
    return blocks.reshape(b, c, d * rz, h * ry, w * rx)


class Pooling(LinearOperator):
    """``A`` takes the mean of every block; ``A_dagger`` repeats a value over its block.

    Args:
        factor: the block's edge, or its (z, y, x) edges: ``(4, 1, 1)`` pools along z alone, as in a volume
            of anisotropic spacing.

    Raises:
        ScoreFusionError: for an edge below 1, and in ``A`` for a volume that is not a whole number of blocks.
    """

    local = True

    def __init__(self, factor: Factor) -> None:
        self.factor = self.blocks = block_edges(factor)

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to ``[B, C, D/rz, H/ry, W/rx]``."""
        return block_mean(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return upsample_blocks(y, self.factor) / math.prod(self.factor)

    def A_dagger(self, y: Tensor) -> Tensor:
        return upsample_blocks(y, self.factor)

    def bounded(self, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
        """Limit x to [lo, hi] with block means ``y``, which lie between them, to rounding.

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


def _size_of(x: Tensor) -> tuple[int, ...]:
    if x.ndim != 5:
        raise ScoreFusionError(f"expected a volume [B, C, D, H, W], got shape {list(x.shape)}")
    return tuple(x.shape)
