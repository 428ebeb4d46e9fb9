"""Parts of an evaluation that read and write buffers: of an engine, or fresh ones that autograd follows.

A mapping of buffers holds ``seen`` (x_t, scaled and padded, ``[B, 1, D, H, W]``), ``condition``, ``common``
where there are position or mask channels, ``scores.K`` of branch K (a stack of slices ``[B, n, 1, h, w]``)
and ``total.S`` of each feature scale S.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

from scorefusion.models.config import ModelConfig, Plane
from scorefusion.models.features import FeatureLayer
from scorefusion.ops.fuse_scores import Fusion
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference.planes import AXIS

Buffers = MutableMapping[str, Tensor]
#: A 2D network's output ``[N, 1, h, w]``, and its features by scale.
Outputs = tuple[Tensor, dict[int, Tensor]]
SLAB_PIXELS = 2**17  #: about how many pixels a 2D network is given at once: what suits a CPU's caches.


def slab_rows(count: int, pixels: int, unit: int, slab: int | None = None, most: int = SLAB_PIXELS) -> int:
    """How many of ``count`` slices of ``pixels`` go at once: whole blocks of ``unit``, evenly shared."""
    blocks = max(1, most // (pixels * unit)) if slab is None else max(1, -(-slab // unit))
    count_of_slabs = -(-count // (min(blocks, count // unit) * unit))
    return -(-count // (count_of_slabs * unit)) * unit


def slabs(count: int, rows: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 slice of each slab."""
    return ((start, min(start + rows, count)) for start in range(0, count, rows))


def pad(x: Tensor, grid: Sequence[int], *, scale: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Multiply ``x [B, C, d, h, w]`` by ``scale``, and repeat the edges to ``[B, C, D, H, W]``.

    Into ``out`` where it is given; ``x`` itself where there is nothing to do.
    """
    if out is None and scale is None and tuple(x.shape[2:]) == tuple(grid):
        return x
    out = x.new_empty(*x.shape[:2], *grid) if out is None else out
    d, h, w = x.shape[2:]
    inside = out[:, :, :d, :h, :w]
    inside.copy_(x) if scale is None else torch.mul(x, scale, out=inside)
    for axis, length, part in ((4, w, out[:, :, :d, :h]), (3, h, out[:, :, :d]), (2, d, out)):
        edge = part.narrow(axis, length, part.shape[axis] - length)
        edge.copy_(part.narrow(axis, length - 1, 1).expand_as(edge))
    return out


def gather_slab(
    b: Mapping[str, Tensor],
    config: ModelConfig,
    k: int,
    start: int,
    stop: int,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """Return slices ``start`` to ``stop`` as branch k's network is given them, ``[B·n, C, h, w]``."""
    branch = config.branches[k]
    return gather_slices(
        b["seen"], b["condition"], b.get("common"), branch.plane, start, stop,
        channels=branch.conditions, context=config.context, order=config.context_order, dtype=dtype, out=out,
    )  # fmt: skip


def keep_slab(
    b: Buffers, layers: Mapping[int, FeatureLayer], k: int, plane: Plane, start: int, outputs: Outputs
) -> None:
    """Put a slab's output into the branch's stack, and add its features to the totals."""
    output, features = outputs
    stack = b[f"scores.{k}"]
    slab = output.unflatten(0, (stack.shape[0], -1))
    stack[:, start : start + slab.shape[1]].copy_(slab)
    for scale, layer in layers.items():
        b[f"total.{scale}"] = layer.add(b[f"total.{scale}"], features[scale], k, plane, start)


def scores_of(b: Mapping[str, Tensor], config: ModelConfig, branches: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the branches' outputs as views ``[B, 1, D, H, W]``."""
    return tuple(b[f"scores.{k}"].movedim(1, AXIS[config.branches[k].plane]) for k in branches)


def fill_channels(stacked: Tensor, first: int, parts: Sequence[Tensor | None]) -> None:
    """Write parts ``[B, c, D, H, W]`` one after another into the 3D network's input, from a channel on."""
    for part in parts:
        if part is not None:
            stacked[:, first : first + part.shape[1]].copy_(part)
            first += part.shape[1]


def cropped(fusion: Fusion, size: Sequence[int]) -> Fusion:
    """Return the fusion of the first ``size`` (z, y, x) voxels: views, nothing is copied."""
    d, h, w = size
    scores = tuple(score[:, :, :d, :h, :w] for score in fusion.scores)
    maps = None if fusion.maps is None else fusion.maps[:, :, :d, :h, :w]
    return fusion._replace(scores=scores, maps=maps)
