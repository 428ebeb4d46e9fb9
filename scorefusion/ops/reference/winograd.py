"""A convolution of extent 3 by minimal filtering: the definition.

    y = A' [sum_c (G w_c) (B' x_c)] + bias + residual

for a tile of m outputs from m + 2 inputs along each axis (F(m, 3); Winograd 1980, Lavin and Gray 2016),
every transform applied along every axis. B, G and A follow from the points where polynomials are evaluated:
0, ±1 and infinity for m = 2; 0, ±sqrt(1/2), ±sqrt(2) and infinity for m = 4, where errors are half those of
the usual 0, ±1, ±2.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

_POINT_A, _POINT_B = math.sqrt(0.5), math.sqrt(2.0)


def transforms(outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(B', G, A')` in float64 for a tile of 2 or 4 outputs, or for 0: an axis without a kernel."""
    if outputs == 0:
        return (torch.ones(1, 1, dtype=torch.float64),) * 3
    if outputs == 2:
        rows = [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0]]
        weights = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]
        results = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, 1.0]]
        return _tensor(rows), _tensor(weights), _tensor(results)
    aa, bb = _POINT_A**2, _POINT_B**2
    points = (_POINT_A, -_POINT_A, _POINT_B, -_POINT_B)
    ends = [[aa * bb, 0.0, -(aa + bb), 0.0, 1.0, 0.0], [0.0, aa * bb, 0.0, -(aa + bb), 0.0, 1.0]]
    others = [aa + bb - p * p for p in points]  # the square of the other pair
    middle = [[0.0, -p * q, -q, p, 1.0, 0.0] for p, q in zip(points, others, strict=True)]
    norms = [2 * p * p * (p * p - q) for p, q in zip(points, others, strict=True)]
    weights = [[1 / n, p / n, p * p / n] for p, n in zip(points, norms, strict=True)]
    results = [[float(i == 0), *(p**i for p in points), float(i == 3)] for i in range(4)]
    return (
        _tensor([ends[0], *middle, ends[1]]),
        _tensor([[1 / (aa * bb), 0.0, 0.0], *weights, [0.0, 0.0, 1.0]]),
        _tensor(results),
    )


def _tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def transformed(weight: Tensor, tile: tuple[int, int, int]) -> Tensor:
    """Return G w, `[positions, C, O]` float64, of `[O, C, [3,] 3, 3]`; `tile` is along z (or 0), y, x."""
    found = weight.detach().double().movedim((0, 1), (-1, -2))  # [z,] y, x, C, O
    found = found.unsqueeze(0) if found.ndim == 4 else found
    for axis, outputs in enumerate(tile):
        # Sums of three in a fixed order: a matrix product splits them by the number of threads.
        rows = [found.select(axis, tap) for tap in range(found.shape[axis])]
        factors = transforms(outputs)[1].tolist()
        lines = [sum(factor * row for factor, row in zip(line, rows, strict=True)) for line in factors]
        found = torch.stack(cast("list[Tensor]", lines), dim=axis)
    return found.flatten(0, 2)


def winograd(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tile: tuple[int, int, int],
    products: torch.dtype,
    rows: tuple[int, int] | None,
    pad_mode: str,
) -> Tensor:
    """Return `[N, O, *size]` of x's dtype; `weights` as :func:`transformed` makes them, the rest as the op's.

    Transforms are float32 (float64 for float64); what is multiplied is rounded to `products`.
    """
    if x.ndim == 4:
        deeper = None if residual is None else residual.unsqueeze(2)
        return winograd(x.unsqueeze(2), weights, bias, deeper, tile, products, None, pad_mode).squeeze(2)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    size, steps = x.shape[2:], [max(outputs, 1) for outputs in tile]
    edge = [0 if outputs == 0 else 1 for outputs in tile]
    around = [pad for axis in (2, 1, 0) for pad in (edge[axis], edge[axis])]
    mode = "constant" if pad_mode == "zeros" else "replicate"
    room = [pad for axis in (2, 1, 0) for pad in (0, -size[axis] % steps[axis])]
    tiles = F.pad(F.pad(x.to(dtype), around, mode=mode), room)
    for axis in range(3):
        tiles = tiles.unfold(axis + 2, steps[axis] + 2 * edge[axis], steps[axis])
    into = [transforms(outputs)[0].to(dtype) for outputs in tile]
    back = [transforms(outputs)[2].to(dtype) for outputs in tile]
    found = torch.einsum("nczyxdhw,pd,qh,rw->pqrnzyxc", tiles, *into)
    sums = found.flatten(3, -2).flatten(0, 2).to(products).to(dtype) @ weights.to(products).to(dtype)
    sums = sums.unflatten(1, found.shape[3:-1]).unflatten(0, found.shape[:3])
    y = torch.einsum("pqrnzyxo,dp,hq,wr->nozdyhxw", sums, *back).flatten(6).flatten(4, 5).flatten(2, 3)
    y = y[:, :, : size[0], : size[1], : size[2]]
    if rows is not None:
        y = y[:, :, rows[0] : rows[1]]
    if bias is not None:
        y = y + bias.to(dtype)[:, None, None, None]
    if residual is not None:
        y = y + residual.to(dtype)
    return y.to(x.dtype)
