"""One solver step in Triton: fused score, solver row, clamp, block projection and noise in one pass.

    m  = fused score                                              `fused_tile` of kernels/fuse_scores.py
    x0 = project(clamp(P x_t + Q m))                              x0, x' [B, C, D, H, W] float32
    x' = A x_t + B x0 + C x0_prev + S z

K scores, K maps, x_t and x0_prev are read once (x0_prev only where C is not zero); x0 and x' are written
once. A program makes a box of whole blocks, one block deep, so that means are found where the voxels are: its
rows run over z and y, its columns over x. Edges of blocks that are no power of two are padded with idle
lanes. Noise is drawn only where S is not zero, four voxels a Philox counter where the box is aligned to them.
Its bits are those of every backend, so the kernel is compiled with enable_fp_fusion=False. The row's number,
seeds, samples and origins are read from memory: a captured graph of a step replays for all of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from .fuse_scores import fused_tile, load_tile
from .launch import Config, launch, view
from .noise import _box_muller, _philox

_WHY = "eight voxels a thread, whole sectors on both axes"
CONFIGS = (Config("2048", _WHY, {"VOXELS": 2048, "MAX_X": 32}, num_warps=8),)


@triton.jit
def _places(tile, lanes, EDGE: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Return the coordinates of lanes of BLOCK // PADDED blocks, and whether each is not padding."""
    if EDGE == PADDED:
        return tile * BLOCK + lanes, lanes >= 0
    return (tile * (BLOCK // PADDED) + lanes // PADDED) * EDGE + lanes % PADDED, lanes % PADDED < EDGE


@triton.jit
def _groups(first, y, z, channel, step, sample, seed):
    """Return the four normals of the counters of group `first` (x // 4), [rows, groups] each."""
    counter = first.to(tl.uint32) | (y.to(tl.uint32) << 16)
    plane = tl.zeros_like(counter) + (z | (channel << 16)).to(tl.uint32)
    steps = tl.zeros_like(counter) + step.to(tl.uint32)
    samples = tl.zeros_like(counter) + sample.to(tl.uint32)
    return _philox(counter, plane, steps, samples, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def _noise_tile(
    x, y, z, channel, step, sample, seed, ROWS: tl.constexpr, BLOCK_X: tl.constexpr, ALIGNED: tl.constexpr
):
    """Return normals [ROWS, BLOCK_X] for voxels x [1, BLOCK_X] and y, z [ROWS, 1] of the original volume."""
    if ALIGNED:
        first = tl.min(x, axis=1, keep_dims=True) // 4 + tl.arange(0, BLOCK_X // 4)[None, :]
        w0, w1, w2, w3 = _groups(first, y, z, channel, step, sample, seed)
        n0, n1 = _box_muller(w0, w1)
        n2, n3 = _box_muller(w2, w3)
        normals = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [ROWS, BLOCK_X])
    else:
        w0, w1, w2, w3 = _groups(x // 4, y, z, channel, step, sample, seed)
        late = (x & 2) != 0
        n0, n1 = _box_muller(tl.where(late, w2, w0), tl.where(late, w3, w1))
        normals = tl.where((x & 1) != 0, n1, n0)
    return normals


@triton.jit
def _fuse_step_kernel(
    next_ptr,
    clean_ptr,
    out_strides,
    fusion,
    x_t,
    previous,
    measured,
    rows_ptr,
    index_ptr,
    keys_ptr,
    limit,
    sizes,
    K: tl.constexpr,
    WHOLE: tl.constexpr,
    RZ: tl.constexpr,
    RY: tl.constexpr,
    RX: tl.constexpr,
    PZ: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """R* are a block's edges, P* the same padded to powers of two, BLOCK_* a tile's lanes along y and x.

    WHOLE says that lanes along x are neighbours: where the box begins at a multiple of 4, four a counter.
    """
    NY: tl.constexpr = BLOCK_Y // PY
    NX: tl.constexpr = BLOCK_X // PX
    ROWS: tl.constexpr = PZ * BLOCK_Y
    channels, depth, height, width = sizes
    across = tl.cdiv(width, NX * RX)
    tile_y, tile_x = tl.program_id(0) // across, tl.program_id(0) % across
    layers = depth // RZ
    layer = tl.program_id(1) % layers
    plane = tl.program_id(1).to(tl.int64) // layers
    item, channel = plane // channels, plane % channels

    lanes = tl.arange(0, ROWS)
    z, is_z = _places(layer, lanes // BLOCK_Y, RZ, PZ, PZ)
    y, is_y = _places(tile_y, lanes % BLOCK_Y, RY, PY, BLOCK_Y)
    x, is_x = _places(tile_x, tl.arange(0, BLOCK_X), RX, PX, BLOCK_X)
    is_row = is_z & is_y & (z < depth) & (y < height)
    z, y, x = z.to(tl.int64)[:, None], y.to(tl.int64)[:, None], x.to(tl.int64)[None, :]
    mask = is_row[:, None] & (is_x[None, :] & (x < width))

    number = tl.load(index_ptr)
    row = rows_ptr + number.to(tl.int64) * 6
    p, q, a = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    b, c, s = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)

    place = (item, channel, z, y, x)
    m = fused_tile(fusion, place, mask, K)
    now = load_tile(x_t, item, channel, z, y, x, mask)
    clean = p * now + q * m
    if limit is not None:
        clean = tl.where(clean < -limit, -limit, tl.where(clean > limit, limit, clean))
    if RZ * RY * RX > 1:
        blocks = tl.reshape(tl.where(mask, clean, 0.0), [PZ, NY, PY, NX, PX])
        excess = tl.sum(tl.sum(tl.sum(blocks, axis=4), axis=2), axis=0) * (1.0 / (RZ * RY * RX))
        if measured is not None:
            block_y = tile_y.to(tl.int64) * NY + tl.arange(0, NY)[:, None]
            block_x = tile_x.to(tl.int64) * NX + tl.arange(0, NX)[None, :]
            is_block = (block_y < height // RY) & (block_x < width // RX)
            depth_place = layer.to(tl.int64)
            excess -= load_tile(measured, item, channel, depth_place, block_y, block_x, is_block)
        spread = tl.broadcast_to(excess[None, :, None, :, None], [PZ, NY, PY, NX, PX])
        clean -= tl.reshape(spread, [ROWS, BLOCK_X])
    target = item * out_strides[0] + channel * out_strides[1] + z * out_strides[2]
    target += y * out_strides[3] + x * out_strides[4]
    tl.store(clean_ptr + target, clean, mask=mask)

    # What nothing asks for is not read, and adds a zero.
    following = b * clean
    following = tl.where(a != 0.0, a * now + following, following)
    asked = mask & ((tl.zeros_like(clean) + c) != 0.0)
    before = load_tile(previous, item, channel, z, y, x, asked)
    following = tl.where(c != 0.0, following + c * before, following)
    if s != 0.0:
        key = keys_ptr + item * 5
        seed, sample = tl.load(key), tl.load(key + 1)
        z, y, x0 = z + tl.load(key + 2), y + tl.load(key + 3), tl.load(key + 4)
        x, step = x + x0, number + 1
        if WHOLE and x0 % 4 == 0:
            following += s * _noise_tile(x, y, z, channel, step, sample, seed, ROWS, BLOCK_X, True)
        else:
            following += s * _noise_tile(x, y, z, channel, step, sample, seed, ROWS, BLOCK_X, False)
    tl.store(next_ptr + target, following, mask=mask)


def fuse_step(
    x_next: Tensor,  # [B, C, D, H, W] float32
    x0: Tensor,  # [B, C, D, H, W] float32
    scores: Sequence[Tensor],  # K of [B, C, D, H, W], any strides
    maps: Tensor | None,  # [B, K, D, H, W], any strides
    base: Sequence[float],
    gain: float,
    x_t: Tensor,  # [B, C, D, H, W] float32
    x0_prev: Tensor,  # [B, C, D, H, W] float32
    rows: Tensor,  # [n, 6] float32, contiguous
    index: Tensor,  # one int32
    keys: Tensor,  # [B, 5] int64, contiguous
    clamp: float | None,
    factor: Sequence[int],
    measured: Tensor | None,  # [B, C, D/rz, H/ry, W/rx], any strides
    config: Config = CONFIGS[0],
) -> None:
    """Write x' and x0; arguments are checked by the op."""
    batch, channels, depth, height, width = x_t.shape
    rz, ry, rx = factor
    pz, py, px = (triton.next_power_of_2(edge) for edge in factor)
    block_x = max(px, config.constants["MAX_X"])
    block_y = max(py, config.constants["VOXELS"] // (block_x * pz))
    across, down = triton.cdiv(width, block_x // px * rx), triton.cdiv(height, block_y // py * ry)
    fusion = (tuple(map(view, scores)), view(maps), tuple(base), gain)
    volumes = (view(x_t), view(x0_prev), view(measured))
    edges = {"RZ": rz, "RY": ry, "RX": rx, "PZ": pz, "PY": py, "PX": px}
    grid = (across * down, batch * channels * (depth // rz))
    outputs, sizes = (x_next, x0, x0.stride()), tuple(x_t.shape[1:])
    arguments = (*outputs, fusion, *volumes, rows, index, keys, clamp, sizes)
    config = replace(config, constants={"BLOCK_Y": block_y, "BLOCK_X": block_x})
    fixed = {"K": len(scores), "WHOLE": rx == px, **edges}
    launch(_fuse_step_kernel, grid, *arguments, enable_fp_fusion=False, config=config, **fixed)
