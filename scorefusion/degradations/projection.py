"""Consistency with measured data: what a denoised image must reproduce exactly.

A projection moves an image to the nearest that agrees with the measurement. For super-resolution from average
pooling it subtracts the upsampled difference between the block means and what was measured; for any other
linear measurement, the pseudo-inverse of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scorefusion.degradations.operator import Operator
from scorefusion.errors import ScoreFusionError

Factor = int | Sequence[int]


def block_mean(x: Tensor, factor: Factor) -> Tensor:
    """Return the mean of every block.

    Args:
        x: [B, C, D, H, W].
        factor: the block's edge, or its (z, y, x) edges.

    Returns:
        [B, C, D/r, H/r, W/r].

    Raises:
        ScoreFusionError: if the volume is not a whole number of blocks.
    """
    rz, ry, rx = block_edges(factor)
    _blocks(x, (rz, ry, rx))
    b, c, d, h, w = x.shape
    return x.reshape(b, c, d // rz, rz, h // ry, ry, w // rx, rx).mean(dim=(3, 5, 7))


def upsample_blocks(x: Tensor, factor: Factor) -> Tensor:
    """Return the volume with every voxel repeated as a block, which is constant at that voxel's value.

    Args:
        x: [B, C, D, H, W].
        factor: the block's edge, or its (z, y, x) edges.

    Returns:
        [B, C, D*r, H*r, W*r].
    """
    rz, ry, rx = block_edges(factor)
    _check_volume(x)
    b, c, d, h, w = x.shape
    blocks = x[:, :, :, None, :, None, :, None].expand(b, c, d, rz, h, ry, w, rx)
    return blocks.reshape(b, c, d * rz, h * ry, w * rx)


class BlockPooling:
    """The projection x0 - up(pool(x0) - measured): block means become exactly what was measured.

    It is linear and idempotent, and moves x0 no further than it must (the orthogonal projection).
    """

    def __init__(self, factor: Factor, measured: Tensor | None = None) -> None:
        """Keep the blocks' edges and, if given, their means.

        Args:
            factor: the block's edge, or its (z, y, x) edges.
            measured: [B, C, D/r, H/r, W/r] block means; None is zero, as for a residual.
        """
        self.factor = block_edges(factor)
        self.measured = measured

    def __call__(self, x0: Tensor) -> Tensor:
        """Return x0, [B, C, D, H, W], with the measured block means.

        Raises:
            ScoreFusionError: if x0 is not a whole number of blocks, or their number is not that of
                `measured`.
        """
        self.check(x0)
        means = block_mean(x0, self.factor)
        if self.measured is not None:
            means = means - self.measured
        return x0 - upsample_blocks(means, self.factor)

    def check(self, x0: Tensor) -> None:
        """Raise as a call would."""
        blocks = _blocks(x0, self.factor)
        if self.measured is not None and list(self.measured.shape[-3:]) != blocks:
            raise ScoreFusionError(
                f"measured has {list(self.measured.shape[-3:])} blocks, the volume has {blocks}"
            )


class MeasurementProjection:
    """The projection x0 - A_dagger(A x0 - measured): what is measured of x0 becomes what was measured.

    It is linear and idempotent, and moves x0 no further than it must, as far as ``A_dagger`` is the
    pseudo-inverse.
    """

    def __init__(self, operator: Operator, measured: Tensor | None = None) -> None:
        """Keep the operator and, if given, what it measured.

        Args:
            operator: ours, or an object with the same three functions, such as one of deepinv's.
            measured: of the operator's own shape, real or complex; None is zero, as for a residual.
        """
        self.operator = operator
        self.measured = measured

    def __call__(self, x0: Tensor) -> Tensor:
        """Return x0, [B, C, D, H, W], with the given measurement."""
        seen = self.operator.A(x0)
        if self.measured is not None:
            seen = seen - self.measured
        return x0 - self.operator.A_dagger(seen)


def block_edges(factor: Factor) -> tuple[int, int, int]:
    """Return the block's (z, y, x) edges.

    Raises:
        ScoreFusionError: unless they are one number, or three, of at least 1.
    """
    edges = (factor,) * 3 if isinstance(factor, int) else tuple(int(edge) for edge in factor)
    if len(edges) != 3 or min(edges) < 1:
        raise ScoreFusionError(f"a block needs one edge, or three, of at least 1; got {factor}")
    return edges


def _blocks(x: Tensor, edges: tuple[int, int, int]) -> list[int]:
    """Return how many blocks x has along z, y and x; raise unless it is a whole number of them."""
    _check_volume(x)
    if any(length % edge for length, edge in zip(x.shape[2:], edges, strict=True)):
        size, block = (" x ".join(str(n) for n in lengths) for lengths in (x.shape[2:], edges))
        raise ScoreFusionError(f"a volume of {size} voxels is not a whole number of {block} blocks")
    return [length // edge for length, edge in zip(x.shape[2:], edges, strict=True)]


def _check_volume(x: Tensor) -> None:
    """Raise unless x is [B, C, D, H, W]."""
    if x.ndim != 5:
        raise ScoreFusionError(f"expected a volume [B, C, D, H, W], got shape {list(x.shape)}")
