"""A slab of 2D features into the 3D sums of a feature layer, and the gradient of its weight, in Triton.

    total[b, o, n, u, v] += sum_{j<s} sum_i W[o, i, j] · feature[b, s·n + j][i, u, v]

A matrix product on tensor cores whose rows are the pixels (u, v) of one coarse slice n and whose summed axis
is (j, i). Rows are fetched from the s slices where they lie: only strides say which axis the slices follow
each other on, so no permuted copy of the features exists. Features are read once (again from the second-level
cache by the programs of other output channels, which run side by side); the total is read once and written
once. Sums are float32; float32 products are made of three TF32 ones (tf32x3).

The gradient of the weight sums over pixels: a fixed number of chunks of them, partial sums in float32, added
in a fixed order, so the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, architecture, interpreting, launch


def _tiles(name: str, why: str, blocks: str, *sizes: int, warps: int = 4, stages: int = 3) -> Config:
    return Config(name, why, {f"BLOCK_{b}": n for b, n in zip(blocks, sizes, strict=True)}, warps, stages)


CONFIGS = (
    _tiles(
        "128x128", "features come once or twice; 64 registers a thread of sums", "MNK", 128, 128, 64, warps=8
    ),
    _tiles(
        "128x64", "64 or 192 outputs fill whole tiles; four warps spill on sm_80", "MNK", 128, 64, 64, warps=8
    ),
    _tiles(
        "64x64", "small slabs; 64 rows are the fewest of wgmma and tcgen05 from four warps", "MNK", 64, 64, 64
    ),
    _tiles("128x64 tf32x3", "float32: deeper spills on sm_80 and sm_120", "MNK", 128, 64, 32, warps=8),
    _tiles("64x64 tf32x3", "float32, small slabs", "MNK", 64, 64, 32),
)
BACKWARD_CONFIGS = (
    _tiles(
        "64x64", "tiles for all of the paper's weights; three stages are at most 48 KB", "IOP", 64, 64, 64
    ),
    # a pipeline would copy the operand that is turned around four bytes at a time
    _tiles("64x64 tf32x3", "float32: one stage", "IOP", 64, 64, 32, stages=1),
)
PROGRAMS = 512
"""Programs to aim at: some four for each processor of the largest GPU."""


@triton.jit
def _ensemble_features_kernel(
    total_ptr,
    total_strides,
    features_ptr,
    feature_strides,
    weight_ptr,
    weight_strides,
    first,
    coarse,
    scale,
    inputs,
    outputs,
    pixels,
    width,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add BLOCK_M pixels of one coarse slice to BLOCK_N channels of the total.

    total_strides are (item, channel, slice, u, v), feature_strides (slice, channel, u, v), weight_strides
    (output, input, j).
    """
    tiles = tl.cdiv(outputs, BLOCK_N)
    n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (tl.program_id(0) // tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    slab = tl.program_id(1).to(tl.int64)
    item, place = slab // coarse, slab % coarse
    u, v = (m // width).to(tl.int64), (m % width).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    slice_ptr = features_ptr + slab * scale * feature_strides[0]
    rows = (u * feature_strides[2] + v * feature_strides[3])[:, None]
    columns = n[None, :] * weight_strides[0]
    inside, wanted = (m < pixels)[:, None], (n < outputs)[None, :]
    steps = tl.cdiv(inputs, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(scale * steps):
        j, i = step // steps, (step % steps) * BLOCK_K + k
        a_ptrs = slice_ptr + j * feature_strides[0] + rows + i[None, :] * feature_strides[1]
        b_ptrs = weight_ptr + j * weight_strides[2] + i[:, None] * weight_strides[1] + columns
        a = tl.load(a_ptrs, mask=inside & (i < inputs)[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=wanted & (i < inputs)[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    target = total_ptr + item * total_strides[0] + (first + place) * total_strides[2]
    target += (u * total_strides[3] + v * total_strides[4])[:, None]
    target += n[None, :].to(tl.int64) * total_strides[1]
    old = tl.load(target, mask=inside & wanted, other=0.0).to(tl.float32)
    tl.store(target, (old + sums).to(total_ptr.dtype.element_ty), mask=inside & wanted)


@triton.jit
def _ensemble_features_backward_kernel(
    partial_ptr,
    grad_ptr,
    grad_strides,
    features_ptr,
    feature_strides,
    first,
    coarse,
    scale,
    inputs,
    outputs,
    pixels,
    width,
    steps,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write chunk program_id(1)'s share of one j, BLOCK_I inputs, BLOCK_O outputs of the gradient.

    partial_ptr is [chunks, s, I, O]; the chunks divide `steps` blocks of BLOCK_P pixels, all slices in a row.
    """
    tiles_o, tiles_i = tl.cdiv(outputs, BLOCK_O), tl.cdiv(inputs, BLOCK_I)
    tile = tl.program_id(0)
    o = (tile % tiles_o) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = (tile // tiles_o % tiles_i) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = tile // tiles_o // tiles_i
    chunk, chunks = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    blocks = tl.cdiv(pixels, BLOCK_P)
    channels = i[None, :].to(tl.int64) * feature_strides[1]
    columns = o[None, :].to(tl.int64) * grad_strides[1]
    sums = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    for step in range((chunk * steps // chunks).to(tl.int32), ((chunk + 1) * steps // chunks).to(tl.int32)):
        slab = (step // blocks).to(tl.int64)
        p = (step % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        u, v = (p // width).to(tl.int64), (p % width).to(tl.int64)
        slice_ptr = features_ptr + (slab * scale + j) * feature_strides[0]
        rows = (u * feature_strides[2] + v * feature_strides[3])[:, None]
        inside = (p < pixels)[:, None]
        a = tl.load(slice_ptr + rows + channels, mask=inside & (i < inputs)[None, :], other=0.0)
        place_ptr = grad_ptr + slab // coarse * grad_strides[0] + (first + slab % coarse) * grad_strides[2]
        places = (u * grad_strides[3] + v * grad_strides[4])[:, None]
        g = tl.load(place_ptr + places + columns, mask=inside & (o < outputs)[None, :], other=0.0)
        if WIDEN:
            a, g = a.to(tl.float32), g.to(tl.float32)
        sums = tl.dot(tl.trans(a), g, sums, input_precision=PRECISION)
    target = partial_ptr + ((chunk * scale + j) * inputs + i[:, None]) * outputs + o[None, :]
    tl.store(target, sums, mask=(i < inputs)[:, None] & (o < outputs)[None, :])


def _by_plane(strides: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Order a total's strides (item, channel, z, y, x) as (item, channel, slice, u, v)."""
    u, v = (place for place in (2, 3, 4) if place != axis)
    return strides[0], strides[1], strides[axis], strides[u], strides[v]


def _misread(dtype: torch.dtype) -> bool:
    """Return whether Triton's interpreter would multiply the integers in which it keeps bfloat16."""
    return dtype == torch.bfloat16 and interpreting()


def _fitting(configs: tuple[Config, ...], device: torch.device, wide: bool) -> list[Config]:
    """Return the configurations for the device and for 32-bit or 16-bit operands."""
    here = architecture(device)
    return [c for c in configs if here in c.architectures and c.name.endswith("tf32x3") == wide]


def _configure(features: Tensor, coarse: int, outputs: int) -> Config:
    """Return the largest tile that leaves none of its columns empty and makes PROGRAMS programs.

    Where channels are not last in memory the addresses take more registers: the smallest tile then.
    """
    choice = _fitting(CONFIGS, features.device, features.dtype == torch.float32)
    pixels = features.shape[2] * features.shape[3]
    for config in choice if features.stride(1) == 1 else ():
        rows, columns = config.constants["BLOCK_M"], config.constants["BLOCK_N"]
        programs = coarse * triton.cdiv(pixels, rows) * triton.cdiv(outputs, columns)
        if (outputs % columns == 0 or columns == 64) and programs >= PROGRAMS:
            return config
    return choice[-1]


def ensemble_features(
    total: Tensor,  # [B, O, D/s, H/s, W/s], any strides
    features: Tensor,  # [B·n, I, h/s, w/s], any strides
    weight: Tensor,  # [O, I, s] of the features' dtype, any strides
    axis: int,
    first: int,
    config: Config | None = None,
) -> None:
    """Add the slab to `total` from coarse slice `first` on; arguments are checked by the op."""
    outputs, inputs, scale = weight.shape
    height, width = features.shape[2:]
    coarse = features.shape[0] // (total.shape[0] * scale)
    config = config or _configure(features, total.shape[0] * coarse, outputs)
    tiles = triton.cdiv(outputs, config.constants["BLOCK_N"])
    grid = (triton.cdiv(height * width, config.constants["BLOCK_M"]) * tiles, total.shape[0] * coarse)
    volumes = (total, _by_plane(total.stride(), axis), features, features.stride(), weight, weight.stride())
    arguments = (*volumes, first, coarse, scale, inputs, outputs, height * width, width)
    products = {"PRECISION": "tf32x3", "WIDEN": _misread(features.dtype)}
    launch(_ensemble_features_kernel, grid, *arguments, config=config, **products)


def ensemble_features_backward(
    out: Tensor,  # [O, I, s] float32
    grad: Tensor,  # [B, O, D/s, H/s, W/s], any strides
    features: Tensor,  # [B·n, I, h/s, w/s], any strides
    axis: int,
    first: int,
    config: Config | None = None,
) -> None:
    """Write the weight's gradient into `out`; 16-bit products if both dtypes are one of 16 bits."""
    outputs, inputs, scale = out.shape
    height, width = features.shape[2:]
    coarse = features.shape[0] // (grad.shape[0] * scale)
    wide = grad.dtype != features.dtype or grad.dtype == torch.float32
    config = config or _fitting(BACKWARD_CONFIGS, features.device, wide)[0]
    block = config.constants
    tiles = scale * triton.cdiv(inputs, block["BLOCK_I"]) * triton.cdiv(outputs, block["BLOCK_O"])
    steps = grad.shape[0] * coarse * triton.cdiv(height * width, block["BLOCK_P"])
    # A chunk's partial sums are at most a twentieth of the bytes that it reads.
    pixel = scale * inputs * features.element_size() + outputs * grad.element_size()
    least = triton.cdiv(20 * 4 * scale * inputs * outputs, pixel * block["BLOCK_P"])
    chunks = max(1, min(steps // least, triton.cdiv(PROGRAMS, tiles)))
    partial = torch.empty((chunks, scale, inputs, outputs), dtype=torch.float32, device=out.device)
    volumes = (partial, grad, _by_plane(grad.stride(), axis), features, features.stride())
    arguments = (*volumes, first, coarse, scale, inputs, outputs, height * width, width, steps)
    products = {"PRECISION": "tf32x3", "WIDEN": grad.dtype != features.dtype or _misread(features.dtype)}
    launch(_ensemble_features_backward_kernel, (tiles, chunks), *arguments, config=config, **products)
    out.copy_(partial.sum(0).permute(2, 1, 0))
