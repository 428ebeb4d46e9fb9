"""The 3D network on overlapping tiles of its input, for volumes it cannot see at once.

Without group statistics and attention, a tile reads the neighbourhood that its output depends on, and the
result is the whole volume's. Else neighbouring tiles overlap, and are blended linearly.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefusion.models.config import UNetConfig
from scorefusion.models.unet import UNet

OVERLAP = 16  #: voxels that a blended tile reads beyond its own part, at least, on either side.
Size = tuple[int, int, int]
Range = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """How a padded grid is cut."""

    tile: Size  #: voxels (z, y, x) that a tile answers for, multiples of the coarsest scale
    halo: int  #: voxels that it reads beyond them on each side
    exact: bool  #: whether the result is the untiled network's; else tiles are blended over their overlaps

    def boxes(self, grid: Sequence[int]) -> Iterator[tuple[tuple[Range, Range], ...]]:
        """For each tile and each axis, what it answers for and what it reads."""
        yield from itertools.product(*(list(self._axis(grid, axis)) for axis in range(3)))

    def largest(self, grid: Sequence[int]) -> Size:
        """Size of the largest box that is read."""
        d, h, w = (max(stop - start for _, (start, stop) in self._axis(grid, axis)) for axis in range(3))
        return d, h, w

    def extra(self, grid: Sequence[int]) -> float:
        """How many times as many voxels are read as there are."""
        read = 1.0
        for axis, length in enumerate(grid):
            read *= sum(stop - start for _, (start, stop) in self._axis(grid, axis)) / length
        return read

    def _axis(self, grid: Sequence[int], axis: int) -> Iterator[tuple[Range, Range]]:
        length, step = grid[axis], self.tile[axis]
        for start in range(0, length, step):
            stop = min(start + step, length)
            yield (start, stop), (max(0, start - self.halo), min(length, stop + self.halo))


def receptive_radius(config: UNetConfig) -> int | None:
    """Voxels that an output voxel sees on each side at most; None where it sees everything.

    Each 3×3×3 convolution adds its level's spacing, as interpolation does, and a coarsest cell is added.
    """
    if config.norm == "group" or config.attention:
        return None
    scales, convolutions = config.scales, config.resample == "conv"
    radius = 2 * scales[0] + 4 * scales[-1] + scales[-1]  # first and last, two blocks in the middle, the cell
    for level, scale in enumerate(scales):
        radius += 2 * scale * (2 * config.blocks + 1)
        if level + 1 < len(scales):
            radius += scale if convolutions else 4 * scale  # down: one at this spacing, or two at the next
        if level:
            radius += scale + scales[level - 1] if convolutions else 2 * scales[level - 1]
    return radius


def tiling(config: UNetConfig, grid: Sequence[int], counts: Sequence[int]) -> Tiling:
    """Cut a grid into about ``counts`` tiles along (z, y, x), evenly, on cells of the coarsest scale."""
    cell = config.scales[-1]
    d, h, w = (-(-length // (count * cell)) * cell for length, count in zip(grid, counts, strict=True))
    radius = receptive_radius(config)
    if radius is not None:
        return Tiling((d, h, w), -(-radius // cell) * cell, True)
    cut = [tile for tile, length in zip((d, h, w), grid, strict=True) if tile < length]
    overlap = min([-(-OVERLAP // cell) * cell, *(tile // 2 // cell * cell for tile in cut)])
    return Tiling((d, h, w), overlap, False)


@torch.no_grad()
def run_tiled(
    network: UNet, stacked: Tensor, time: Tensor, inject: Mapping[int, Tensor], cut: Tiling, out: Tensor
) -> Tensor:
    """Run the 3D network tile by tile on its padded input ``[B, C, D, H, W]``; ``time [B]``.

    ``inject``, ``[B, C, D/s, H/s, W/s]`` by scale, is added into its encoder; ``out [B, K, D, H, W]`` is
    overwritten and returned.
    """
    grid = stacked.shape[2:]
    if not cut.exact:
        out.zero_()
    for parts in cut.boxes(grid):
        reads = [read for _, read in parts]
        totals = {
            scale: total[_box([(start // scale, stop // scale) for start, stop in reads])]
            for scale, total in inject.items()
        }
        result = network(stacked[_box(reads)], time, inject=totals)
        if cut.exact:
            inner = [(own[0] - read[0], own[1] - read[0]) for own, read in parts]
            out[_box([own for own, _ in parts])] = result[_box(inner)]
            continue
        for axis, (own, read) in enumerate(parts, start=2):
            line = _weights(own, read, grid[axis - 2], cut.halo, out)
            result.mul_(line.reshape([-1 if place == axis else 1 for place in range(5)]))
        out[_box(reads)] += result
    return out


def _box(ranges: Sequence[Range]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(start, stop) for start, stop in ranges))


def _weights(own: Range, read: Range, length: int, halo: int, like: Tensor) -> Tensor:
    """A tile's share along an axis: rises and falls linearly over ``2·halo`` voxels; shares sum to one."""
    places = torch.arange(read[0], read[1], device=like.device, dtype=torch.float32) + 0.5
    line = torch.ones_like(places)
    if own[0] > 0 and halo:
        line = torch.minimum(line, (places - (own[0] - halo)) / (2 * halo))
    if own[1] < length and halo:
        line = torch.minimum(line, ((own[1] + halo) - places) / (2 * halo))
    return line.clamp_(0.0, 1.0).to(like.dtype)
