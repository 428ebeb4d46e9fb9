"""The fused score in Triton, and its gradient with respect to the maps.

    out = sum_k base_k s_k + sum_{k<K} w_k (s_k - s_K) + gain · r         out [B, C, D, H, W]

K scores and K maps are read once, one output is written once. A program makes a BLOCK_Y x BLOCK_X tile of one
z-plane. A stack of sagittal slices is contiguous along y and the others along x: tiles 32 long on both axes
use every 32-byte sector they touch, whichever axis it runs along, and the compiler turns the tile around in
shared memory where layouts differ. Sums are float32, in the order written.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, launch, view

CONFIGS = (
    Config("32x32", "whole sectors on both axes; registers for six branches", {"BLOCK_Y": 32, "BLOCK_X": 32}),
)


@triton.jit
def tile_places(height, width, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr):
    """Return y [BLOCK_Y, 1], x [1, BLOCK_X] (int64) and the mask of this program's tile on grid axis 0."""
    across = tl.cdiv(width, BLOCK_X)
    tile = tl.program_id(0)
    y = (tile // across) * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
    x = (tile % across) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    return y.to(tl.int64), x.to(tl.int64), (y < height) & (x < width)


@triton.jit
def load_tile(view, item, channel, z, y, x, mask):
    """Load a tile of a [B, C, D, H, W] view as float32; item, channel and z are int64 scalars."""
    ptr, strides = view
    base = ptr + item * strides[0] + channel * strides[1] + z * strides[2]
    return tl.load(base + y * strides[3] + x * strides[4], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def fused_tile(fusion, place, mask, K: tl.constexpr):
    """Return the fused score of the tile at place = (item, channel, z, y, x), float32.

    fusion is (scores, maps, base, gain): K views, a view or None, K numbers and one.
    """
    scores, maps, base, gain = fusion
    item, channel, z, y, x = place
    last = load_tile(scores[K - 1], item, channel, z, y, x, mask)
    total = tl.zeros_like(last)
    shift = tl.zeros_like(last)
    for k in tl.static_range(K - 1):
        score = load_tile(scores[k], item, channel, z, y, x, mask)
        total += base[k] * score
        if maps is not None:
            share = load_tile(maps, item, k, z, y, x, mask)
            shift += share * (score - last)
    total += base[K - 1] * last
    if maps is not None:
        total += shift + gain * load_tile(maps, item, K - 1, z, y, x, mask)
    return total


@triton.jit
def _fuse_scores_kernel(
    out_ptr, out_strides, fusion, sizes, K: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr
):
    channels, depth, height, width = sizes
    y, x, mask = tile_places(height, width, BLOCK_Y, BLOCK_X)
    plane = tl.program_id(1).to(tl.int64)
    item, channel, z = plane // depth // channels, plane // depth % channels, plane % depth
    place = (item, channel, z, y, x)
    total = fused_tile(fusion, place, mask, K)
    target = out_ptr + item * out_strides[0] + channel * out_strides[1] + z * out_strides[2]
    tl.store(target + y * out_strides[3] + x * out_strides[4], total, mask=mask)


@triton.jit
def _fuse_scores_backward_kernel(
    out_ptr, strides, grad, scores, gain, sizes, K: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr
):
    """grad_maps_k = g (s_k - s_K) for k < K, and gain · g for the residual."""
    depth, height, width = sizes
    y, x, mask = tile_places(height, width, BLOCK_Y, BLOCK_X)
    plane = tl.program_id(1).to(tl.int64)
    item, z = plane // depth, plane % depth
    slope = load_tile(grad, item, 0, z, y, x, mask)
    last = load_tile(scores[K - 1], item, 0, z, y, x, mask)
    target = out_ptr + item * strides[0] + z * strides[2] + y * strides[3] + x * strides[4]
    for k in tl.static_range(K - 1):
        score = load_tile(scores[k], item, 0, z, y, x, mask)
        tl.store(target + k * strides[1], slope * (score - last), mask=mask)
    tl.store(target + (K - 1) * strides[1], gain * slope, mask=mask)


def fuse_scores(
    out: Tensor,  # [B, C, D, H, W] float32
    scores: Sequence[Tensor],  # K of [B, C, D, H, W], any strides
    maps: Tensor | None,  # [B, K, D, H, W], any strides
    base: Sequence[float],
    gain: float,
    config: Config = CONFIGS[0],
) -> None:
    """Write the fused score into `out`; arguments are checked by the op."""
    fusion = (tuple(map(view, scores)), view(maps), tuple(base), gain)
    arguments = (out, out.stride(), fusion, tuple(out.shape[1:]))
    launch(_fuse_scores_kernel, _grid(out, config), *arguments, K=len(scores), config=config)


def fuse_scores_backward(
    out: Tensor,  # [B, K, D, H, W] float32
    grad: Tensor,  # [B, 1, D, H, W]
    scores: Sequence[Tensor],  # K of [B, 1, D, H, W]
    gain: float,
    config: Config = CONFIGS[0],
) -> None:
    """Write the gradient with respect to the maps into `out`."""
    arguments = (out, out.stride(), view(grad), tuple(map(view, scores)), gain, tuple(grad.shape[2:]))
    launch(_fuse_scores_backward_kernel, _grid(grad, config), *arguments, K=len(scores), config=config)


def _grid(out: Tensor, config: Config) -> tuple[int, int]:
    batch, channels, depth, height, width = out.shape
    tiles = triton.cdiv(height, config.constants["BLOCK_Y"]) * triton.cdiv(width, config.constants["BLOCK_X"])
    return tiles, batch * channels * depth
