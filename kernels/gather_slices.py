"""Slabs of 2.5D slices in Triton: planes of volumes, interleaved into channels-last pixels.

    out[b·n + s, u, v, c] = source_c[b, clamp(start + s + offset_c), u, v]        out [B·n, h, w, C] in memory

Sources are the conditions with their neighbours, the common channels and x_t. Each volume's slices are read
once from memory, the result is written once. A program makes BLOCK consecutive elements of BLOCK_S slices:
stores are contiguous, and 16 bytes a thread wherever a slice's size allows. A lane reads one source, the
others being masked. Neighbouring slices follow each other in the grid, so the 2·context + 1 of them that a
slice of the conditions serves find it in a cache. Where slices run contiguously (sagittal), BLOCK_S of them
are read together, in whole sectors, and turned around in shared memory.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, launch

CONFIGS = (
    Config("1024x1", "contiguous pixels: one slice; eight elements a thread", {"BLOCK": 1024, "BLOCK_S": 1}),
    Config("128x16", "contiguous slices: sixteen, whole sectors", {"BLOCK": 128, "BLOCK_S": 16}, num_warps=8),
    Config("256x8", "short slabs of such planes: no idle lanes", {"BLOCK": 256, "BLOCK_S": 8}, num_warps=8),
)


@triton.jit
def _gather_slices_kernel(
    out_ptr,
    x_ptr,
    x_strides,
    condition_ptr,
    condition_strides,
    common_ptr,
    common_strides,
    channels,
    start,
    count,
    slices,
    width,
    size,
    blocks,
    CONTEXT: tl.constexpr,
    BY_SLICE: tl.constexpr,
    SEEN: tl.constexpr,
    SHARED: tl.constexpr,
    NOISY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Fill BLOCK elements of BLOCK_S slices.

    Strides are (item, channel, slice, row, pixel). `channels` holds the SEEN condition channels; then come
    SHARED common channels and NOISY of x_t. `count` slices are cut of `slices`; one has `size` elements.
    """
    SPAN: tl.constexpr = 2 * CONTEXT + 1
    C: tl.constexpr = SEEN * SPAN + SHARED + NOISY
    across = tl.cdiv(count, BLOCK_S)
    program = tl.program_id(0)
    s = (program % across) * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
    block = (program // across) % blocks
    item = (program // across // blocks).to(tl.int64)
    index = block * BLOCK + tl.arange(0, BLOCK)[:, None]
    inside = (index < size) & (s < count)
    c = index % C
    pixel = index // C
    u = (pixel // width).to(tl.int64)
    v = (pixel % width).to(tl.int64)
    place = (start + s).to(tl.int64)

    noisy = x_ptr + item * x_strides[0] + (c - (C - NOISY)).to(tl.int64) * x_strides[1] + place * x_strides[2]
    value = tl.load(
        noisy + u * x_strides[3] + v * x_strides[4], mask=inside & (c >= C - NOISY), other=0.0
    ).to(out_ptr.dtype.element_ty)
    if SEEN > 0:
        if BY_SLICE:
            which = c % SEEN
            offset = c // SEEN - CONTEXT
        else:
            which = c // SPAN
            offset = c % SPAN - CONTEXT
        channel = which * 0
        for i in tl.static_range(SEEN):
            channel = tl.where(which == i, channels[i], channel)
        near = tl.minimum(tl.maximum(place + offset, 0), slices - 1)
        seen = condition_ptr + item * condition_strides[0] + channel.to(tl.int64) * condition_strides[1]
        seen += near * condition_strides[2] + u * condition_strides[3] + v * condition_strides[4]
        wanted = c < SEEN * SPAN
        found = tl.load(seen, mask=inside & wanted, other=0.0).to(out_ptr.dtype.element_ty)
        value = tl.where(wanted, found, value)
    if SHARED > 0:
        first: tl.constexpr = SEEN * SPAN
        shared = common_ptr + item * common_strides[0] + (c - first).to(tl.int64) * common_strides[1]
        shared += place * common_strides[2] + u * common_strides[3] + v * common_strides[4]
        wanted = (c >= first) & (c < first + SHARED)
        found = tl.load(shared, mask=inside & wanted, other=0.0).to(out_ptr.dtype.element_ty)
        value = tl.where(wanted, found, value)
    target = out_ptr + (item * count + s) * size + index
    tl.store(target, value, mask=inside)


def gather_slices(
    out: Tensor,  # [B·n, C, h, w], channels last
    x_t: Tensor,  # [B, t, D, H, W], any strides
    condition: Tensor,  # [B, c, D, H, W], any strides
    common: Tensor | None,  # [B, p, D, H, W], any strides
    axis: int,
    start: int,
    stop: int,
    channels: Sequence[int],
    context: int,
    order: str,
    config: Config | None = None,
) -> None:
    """Write slices start .. stop along `axis` (2, 3 or 4) into `out`; arguments are checked by the op."""
    config = config or choose_config(x_t, axis, stop - start)
    given = x_t if common is None else common
    size = out[0].numel()
    blocks = triton.cdiv(size, config.constants["BLOCK"])
    volumes = [part for volume in (x_t, condition, given) for part in (volume, _strides(volume, axis))]
    grid = (triton.cdiv(stop - start, config.constants["BLOCK_S"]) * blocks * x_t.shape[0],)
    cut = (tuple(channels), start, stop - start, x_t.shape[axis], out.shape[3], size, blocks)
    fixed = {"CONTEXT": context, "BY_SLICE": order == "slice", "SEEN": len(channels)}
    fixed |= {"SHARED": 0 if common is None else common.shape[1], "NOISY": x_t.shape[1]}
    launch(_gather_slices_kernel, grid, out, *volumes, *cut, config=config, **fixed)


def choose_config(x_t: Tensor, axis: int, count: int) -> Config:
    """Return how to cut `count` slices: several together where they, and not their pixels, are contiguous."""
    item, channel, across, row, pixel = _strides(x_t, axis)
    if count == 1 or pixel == 1 or across != 1:
        return CONFIGS[0]
    return CONFIGS[1 if count > 8 else 2]


def _strides(volume: Tensor, axis: int) -> tuple[int, ...]:
    """Return the strides of (item, channel, slice, row, pixel)."""
    return volume.movedim(axis, 2).stride()
