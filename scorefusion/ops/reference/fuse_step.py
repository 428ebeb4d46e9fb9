"""One step of a solver after the networks: the definition.

    m  = fused score of the branches                              `scorefusion.ops.reference.fuse_scores`
    x0 = project(clamp(P x_t + Q m))
    x' = A x_t + B x0 + C x0_prev + S z

P, Q, A, B, C, S are a row of the solver's table. The projection makes block means zero, or what was measured;
z is `scorefusion.ops.reference.noise`. A term whose coefficient A, C or S is zero is left out, so an infinite
x0_prev that nothing asks for stays out of the result, and no noise is drawn for a row that adds none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scorefusion.ops.reference.fuse_scores import fuse_scores
from scorefusion.ops.reference.noise import normal


def fuse_step(
    scores: Sequence[Tensor],
    maps: Tensor | None,
    base: Sequence[float],
    gain: float,
    x_t: Tensor,
    x0_prev: Tensor,
    rows: Tensor,
    index: Tensor,
    keys: Tensor,
    clamp: float | None,
    factor: Sequence[int],
    measured: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return (x', x0); arguments are `ops.fuse_step`'s, checked. Reads row and keys on the host."""
    number = int(index)
    p, q, a, b, c, s = rows[number].tolist()
    x0 = p * x_t + q * fuse_scores(scores, maps, base, gain).to(x_t.dtype)
    x0 = x0 if clamp is None else x0.clamp(-clamp, clamp)
    x0 = x0 if max(factor) == 1 else set_block_means(x0, factor, measured)
    x = b * x0 if a == 0.0 else a * x_t + b * x0
    x = x if c == 0.0 else x + c * x0_prev
    if s != 0.0:
        # The reference noise needs float64, which MPS has not.
        home = torch.device("cpu") if x_t.device.type == "mps" else x_t.device
        one = (1, *x_t.shape[1:])
        z = [normal(one, [seed], number + 1, origin, sample, home) for seed, sample, *origin in keys.tolist()]
        x = x + s * torch.cat(z).to(x_t)
    return x.contiguous(), x0.contiguous()


def set_block_means(x0: Tensor, factor: Sequence[int], measured: Tensor | None) -> Tensor:
    """Return x0 [B, C, D, H, W] moved, block by block, to the measured means, or to zero means."""
    rz, ry, rx = factor
    batch, channels, depth, height, width = x0.shape
    grid = (batch, channels, depth // rz, 1, height // ry, 1, width // rx, 1)
    blocks = x0.reshape(batch, channels, depth // rz, rz, height // ry, ry, width // rx, rx)
    means = blocks.mean(dim=(3, 5, 7), keepdim=True)
    if measured is not None:
        means = means - measured.to(x0.dtype).reshape(grid)
    return (blocks - means).reshape(x0.shape)
