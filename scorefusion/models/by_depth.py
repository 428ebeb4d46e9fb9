"""Layers of the 3D network on volumes so large that their intermediates would fill the memory.

The widest inputs of convolutions are made a few depth rows at a time, one beyond on either side, and never
whole; the numbers are those of the whole layer, up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from scorefusion.models.blocks import Normalisation

LARGE = 2**30  #: bytes from which an intermediate is made piece by piece.
PIECE = 2**27  #: bytes of such a piece, about.


def is_large(x: Tensor, channels: int) -> bool:
    """Whether ``channels`` on the grid of ``x [B, C, D, H, W]`` are too much to hold; not with autograd."""
    if x.dim() != 5 or torch.is_grad_enabled():
        return False
    return x.numel() // max(x.shape[1], 1) * channels * x.element_size() > LARGE


def added(x: Tensor, y: Tensor) -> Tensor:
    """``x + y`` where x is not needed any more: in place, unless autograd follows."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def convolved_norm(
    convolution: nn.Conv2d | nn.Conv3d, norm: Normalisation, x: Tensor, other: Tensor | None
) -> Tensor:
    """``convolution(norm(x, other))`` for a 3×3×3 zero-padded convolution, ``[B, outputs, D, H, W]``."""
    if norm.groups is not None:
        mean, variance = _group_moments(x, other, norm.groups)
    depth = x.shape[2]
    out = _empty(x, convolution.out_channels, x.shape[2:])
    for start, stop in _pieces(x, convolution.in_channels, depth):
        first, last = max(0, start - 1), min(depth, stop + 1)
        rows = x[:, :, first:last]
        others = None if other is None else other[:, :, first:last]
        if norm.groups is None:
            rows = norm(rows, others)
        else:
            rows = _normalised(rows, others, mean, variance, norm)
        out[:, :, start:stop] = _convolved(convolution, rows, start - first, last - stop)
    return out


def convolved_linear_up(convolution: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """``convolution(x, twice as fine by linear interpolation)``, ``[B, outputs, 2·D, 2·H, 2·W]``."""
    depth = x.shape[2]
    out = _empty(x, convolution.out_channels, [2 * length for length in x.shape[2:]])
    for start, stop in _pieces(x, 8 * x.shape[1], depth):
        first, last = max(0, start - 1), min(depth, stop + 1)
        rows = F.interpolate(x[:, :, first:last], scale_factor=2, mode="trilinear")
        # The outermost row of a piece would need the row beyond it; the convolution does not ask for it.
        above, below = start > 0, stop < depth
        rows = rows[:, :, int(above) : rows.shape[2] - int(below)]
        out[:, :, 2 * start : 2 * stop] = _convolved(convolution, rows, int(above), int(below))
    return out


def _pieces(x: Tensor, channels: int, depth: int) -> Iterator[tuple[int, int]]:
    """Ranges of depth rows of which ``channels`` take about `PIECE` bytes."""
    row = x.numel() // (x.shape[1] * depth) * channels * x.element_size()
    rows = max(1, PIECE // row)
    for start in range(0, depth, rows):
        yield start, min(start + rows, depth)


def _convolved(convolution: nn.Conv2d | nn.Conv3d, rows: Tensor, above: int, below: int) -> Tensor:
    """Convolve rows of which ``above`` and ``below`` are neighbours, zero where there are none."""
    packed = getattr(convolution, "rows", None)
    if packed is not None:
        return packed(rows, above, rows.shape[2] - below)
    rows = F.pad(rows, (0, 0, 0, 0, 1 - above, 1 - below)) if above + below < 2 else rows
    rows = rows.contiguous(memory_format=torch.channels_last_3d)
    return F.conv3d(rows, convolution.weight, convolution.bias, padding=(0, 1, 1))


def _empty(x: Tensor, channels: int, size: list[int] | torch.Size) -> Tensor:
    return torch.empty(
        x.shape[0], channels, *size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d
    )


def _group_moments(x: Tensor, other: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[B, C]`` that GroupNorm over ``[x, other]`` takes for each channel."""
    count = x[0, 0].numel()
    means, squares = [], []
    for part in (x,) if other is None else (x, other):
        mean = x.new_zeros(part.shape[:2], dtype=torch.float64)
        square = torch.zeros_like(mean)
        seen = 0
        for start, stop in _pieces(part, 2 * part.shape[1], part.shape[2]):  # in float32: twice as large
            here, size = part[:, :, start:stop].float(), part[0, 0, start:stop].numel()
            variance, middle = torch.var_mean(here, dim=(2, 3, 4), correction=0)
            apart = middle.double() - mean
            square += variance.double() * size + apart**2 * (seen * size / (seen + size))
            mean += apart * (size / (seen + size))
            seen += size
        means.append(mean)
        squares.append(square / count)
    mean, variance = (torch.cat(parts, dim=1).unflatten(1, (groups, -1)) for parts in (means, squares))
    middle = mean.mean(dim=2, keepdim=True)
    variance = (variance + (mean - middle) ** 2).mean(dim=2, keepdim=True).expand_as(mean)
    return middle.expand_as(mean).flatten(1).float(), variance.flatten(1).float()


def _normalised(
    x: Tensor, other: Tensor | None, mean: Tensor, variance: Tensor, norm: Normalisation
) -> Tensor:
    """Rows of ``silu(groupnorm([x, other]))`` with the moments of the whole, in ``x``'s dtype."""
    parts = (x,) if other is None else (x, other)
    result = _empty(x, sum(part.shape[1] for part in parts), x.shape[2:])
    first = 0
    for part in parts:
        channels = slice(first, first + part.shape[1])
        first = channels.stop
        weight, bias = norm.weight[channels].float(), norm.bias[channels].float()
        for item in range(x.shape[0]):
            moments = mean[item, channels], variance[item, channels]
            for start, stop in _pieces(part[:1], 2 * part.shape[1], part.shape[2]):  # in float32
                here = part[item : item + 1, :, start:stop].float()
                here = F.batch_norm(here, *moments, weight, bias, training=False, eps=1e-5)
                result[item : item + 1, channels, start:stop] = F.silu(here, inplace=True)
    return result
